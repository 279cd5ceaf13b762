"""Prefix captioner: an image encoder, a projector to a prefix of tokens, a causal language model that goes on."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from mmhf.features.parts import VISION, FeaturePart
from mmhf.models.attention_masks import causal_mask
from mmhf.models.captioner.caption_loss import caption_loss
from mmhf.models.captioner.captioner_parts import (
    complete_config,
    fresh_vision,
    language_width,
    load_part,
    read_features,
)
from mmhf.models.captioner.configuration_captioner import PrefixCaptionerConfig
from mmhf.models.captioner.neighbours import Neighbours, NeighbourVotes
from mmhf.models.captioner.prefixes import begun_ids, ends, padded_left, prefix_mask, refuse_assistants
from mmhf.models.captioner.projectors import TransformerProjector, build_projector
from mmhf.models.encoders import EncoderOutput, laid_out, run_vision
from mmhf.models.tower import TOWER, TowerModel


@dataclass
class PrefixCaptionerOutput(ModelOutput):
    """Output of [`PrefixCaptionerForConditionalGeneration`].

    Attributes:
        loss (`Tensor`, *optional*): Scalar, when labels were given.
        logits (`Tensor`, *optional*): (B, T, V), of the tokens of the captions, when no labels were given.
        hidden_states (`tuple[Tensor]`, *optional*): Of the language model, over prefix, prompt and captions but their
            last tokens, when asked for.
        attentions (`tuple[Tensor]`, *optional*): The same of its attentions.
        image_hidden_states (`Tensor`, *optional*): (B, prefix, D), what stands for the image, when hidden states were
            asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None


class PrefixCaptionerForConditionalGeneration(TowerModel, GenerationMixin):
    """Write a caption for an image.

    What the language model reads is the image as `prefix_length` tokens, the prompt, and the caption so far. The
    prompt is the config's, or each row's own: `prompt_ids`, which the processor makes of a row's columns, or the
    captions of the nearest training images.

    Args:
        config ([`PrefixCaptionerConfig`]): Shapes, features, prompt.
        vision (`nn.Module`, *optional*): Image encoder with weights, used and not copied; absent = fresh from
            `config.vision_config`.
        language (`nn.Module`, *optional*): Causal language model with weights, used and not copied; absent = fresh
            from `config.language_config`.
    """

    config: PrefixCaptionerConfig
    config_class = PrefixCaptionerConfig
    parts = {"vision": TOWER, "projector": ("projector.",), "language": TOWER}

    def __init__(
        self, config: PrefixCaptionerConfig, vision: nn.Module | None = None, language: nn.Module | None = None
    ) -> None:
        super().__init__(config)
        complete_config(config)
        # By the name of the class, Trainer would take the labels for shifted ones and count one too few a caption.
        self.loss_type: Any = None
        self.vision_output = EncoderOutput.from_dict(config.vision_output or {})
        self.vision: Any = fresh_vision(config.vision_config, config.vision_features) if vision is None else vision
        self.projector = build_projector(config, self.vision_output.width, language_width(config))
        self.language: Any = AutoModelForCausalLM.from_config(config.language_config) if language is None else language
        # In the config already, so not in the weights; on the device, where a step must not bring it anew.
        self.prompt: Tensor
        self.register_buffer("prompt", torch.tensor(config.prompt_ids, dtype=torch.long), persistent=False)
        self.neighbours: Neighbours | None = None
        self.keep_neighbours(config.neighbours)
        if isinstance(self.vision, PreTrainedModel):  # else it is brought back from elsewhere
            self.drop_unused_of("vision", self.vision)
        self.post_init()

    def keep_neighbours(self, values: dict[str, Any] | None) -> None:
        """Make room for the captions of training images, none of which is known yet; None = look nothing up."""
        self.config.neighbours = values
        self.neighbours = (
            None if values is None else Neighbours(values, self.vision_output.width).to(self.prompt.device)
        )
        # All processes have the same ones; broadcasting them would cost more than a step.
        found = {} if self.neighbours is None else dict(self.neighbours.named_buffers(prefix="neighbours"))
        self._ddp_params_and_buffers_to_ignore = set(found)

    def _run_vision(self, pixel_values: Tensor, **asked: bool) -> Any:
        images = laid_out(pixel_values, self.vision_output)
        return run_vision(self.vision, images, self.config.vision_features, **asked)

    def _read_image(self, output: Any) -> Tensor:
        return read_features(output, self.config.vision_features, self.vision_output)

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        embeddings: nn.Module = self.language.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Give the language model other ones."""
        self.language.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        head: nn.Module = self.language.get_output_embeddings()
        return head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Give the language model another head."""
        self.language.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As `PreTrainedModel.resize_token_embeddings`, of the language model."""
        embeddings: nn.Embedding = self.language.resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        # The language model may have a config of its own, when it was given with its weights.
        self.vocab_size: int = self.language.config.get_text_config().vocab_size
        self.config.get_text_config().vocab_size = self.vocab_size
        return embeddings

    def feature_parts(self) -> tuple[FeaturePart, ...]:
        """The image encoder, up to what the projector reads."""
        return (VISION,)

    def prefix_embeds(self, image_features: Tensor, prompt_ids: Tensor | None = None) -> Tensor:
        """What the language model reads before a caption: (B, ..., width) → (B, prefix and prompt, D).

        Args:
            image_features (`Tensor`): What `image_features` made of the images.
            prompt_ids (`Tensor`, *optional*): (B, P), each row's prompt; absent = the config's prompt for all.

        Raises:
            `ValueError`: the prompt names columns, and there are no `prompt_ids`.
        """
        prefix: Tensor = self.projector(image_features)
        if prompt_ids is not None:
            prompt = self._embed(prompt_ids)
        elif self.config.prompt_template is not None:
            raise ValueError("the model's prompt names columns; it needs prompt_ids, as the processor makes them")
        elif not len(self.prompt):
            return prefix
        else:
            prompt = self._embed(self.prompt)[None].expand(prefix.shape[0], -1, -1)
        return torch.cat([prefix, prompt.to(prefix.dtype)], dim=1)

    def _look_up(
        self,
        features: Tensor,
        prompt_ids: Tensor | None,
        prompt_mask: Tensor | None,
        image_index: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, NeighbourVotes | None]:
        """The given prompts; without any, those that the nearest training images make, and these images' votes."""
        if self.neighbours is None or prompt_ids is not None:
            return prompt_ids, prompt_mask, None
        found: tuple[Tensor, Tensor, NeighbourVotes | None] = self.neighbours(features, image_index)
        return found

    def _image(
        self, pixel_values: Tensor | None, image_features: Tensor | None, image_hidden: Tensor | None = None
    ) -> Tensor:
        features, _ = self._seen(pixel_values, image_features, image_hidden)
        if features is None:
            raise ValueError("the model needs pixel_values or image_features")
        return features

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        image_features: Tensor | None = None,
        image_hidden: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> PrefixCaptionerOutput:
        """Loss or logits of captions.

        Args:
            pixel_values (`Tensor`): (B, 3, H, W), normalised as the image encoder expects.
            input_ids (`Tensor`): (B, T), captions alone, padded on the right.
            attention_mask (`Tensor`, *optional*): (B, T). Not read: no token ever sees the padding behind it.
            labels (`Tensor`, *optional*): (B, T), the captions and what ends them; -100 = no loss here. Not shifted.
            num_items_in_batch (`Tensor` or `int`, *optional*): What the loss is divided by; absent, the number of
                labels.
            image_features (`Tensor`, *optional*): Instead of `pixel_values`, what `image_features` made of them.
            image_hidden (`Tensor`, *optional*): Instead of `pixel_values`, the image encoder's features (B, ...) at
                the boundary that [`HasFeatureParts`]'s `use_part` was told.
            inputs_embeds (`Tensor`, *optional*): (B, T, D), instead of `input_ids`.
            prompt_ids (`Tensor`, *optional*): (B, P), each row's prompt; absent = the config's prompt for all.
            prompt_mask (`Tensor`, *optional*): (B, P), 0 where `prompt_ids` are padding, on whichever side; absent =
                no padding.
            image_index (`Tensor`, *optional*): (B,) places of the images in the training table, so that none of them
                is its own neighbour; absent = images that the model was not trained on.
            output_hidden_states, output_attentions (`bool`, *optional*): Also the language model's hidden states,
                attentions; absent = as the config says.
            return_dict (`bool`, *optional*): False = a tuple; absent = as the config says.

        Raises:
            `ValueError`: no image, or not one of `input_ids` and `inputs_embeds`.
        """
        features = self._image(pixel_values, image_features, image_hidden)
        prompt_ids, prompt_mask, votes = self._look_up(features, prompt_ids, prompt_mask, image_index)
        prefix, mask = self.prefix_embeds(features, prompt_ids), None
        image = prefix[:, : self.config.prefix_length]
        if prompt_mask is not None:
            prefix, mask = padded_left(prefix, prefix_mask(prefix, prompt_mask))
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self._embed(input_ids)
        elif inputs_embeds is None or input_ids is not None:
            raise ValueError("the model needs input_ids or inputs_embeds, and not both")
        asked = self._asked(output_hidden_states, output_attentions)
        hidden, language = self._caption_states(prefix, inputs_embeds, mask, **asked)
        head = self.language.get_output_embeddings()
        output = PrefixCaptionerOutput()
        if labels is not None:
            mixed = None if votes is None else votes.of(labels if input_ids is None else input_ids)
            output.loss = caption_loss(
                hidden, labels, head.weight, head.bias, num_items_in_batch=num_items_in_batch, mixed=mixed
            )
        else:
            output.logits = head(hidden)
            if votes is not None and input_ids is not None:
                output.logits = votes.mix(output.logits, *votes.along(input_ids[:, :-1]))
        output.hidden_states, output.attentions = language.get("hidden_states"), language.get("attentions")
        if "output_hidden_states" in asked:
            output.image_hidden_states = image
        return output

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_features: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write captions for a batch, with a cache of keys and values, as the language model's own `generate` does.

        Args:
            pixel_values (`Tensor`): (B, 3, H, W), normalised as the image encoder expects.
            input_ids (`Tensor`, *optional*): (B, T), how the captions begin, as the processor gives them: the tokens
                that end and pad them are left out. Absent = the whole captions are to be written.
            attention_mask (`Tensor`, *optional*): (B, T), of `input_ids` or `inputs_embeds`; absent = no padding.
            inputs_embeds (`Tensor`, *optional*): (B, T, D), instead of `input_ids`, or what is read in their place.
            image_features (`Tensor`, *optional*): Instead of `pixel_values`, what `image_features` made of them.
            prompt_ids, prompt_mask (`Tensor`, *optional*): As of `forward`.
            generation_config ([`GenerationConfig`], *optional*): Absent, the model's own.
            kwargs: As `GenerationMixin.generate` takes them: `num_beams`, `do_sample`, `max_new_tokens`,
                `prompt_lookup_num_tokens`, ...

        Returns:
            `Tensor`: (B, T + at most `max_new_tokens`) token ids, without the prefix and the prompt: the beginnings,
            padded on the left, and what was written. With `return_dict_in_generate` an output of transformers.

        Raises:
            `ValueError`: no image, an assistant, or prompt lookup with `input_ids`.
        """
        refuse_assistants(generation_config, kwargs, has_begun=input_ids is not None)
        features = self._image(pixel_values, image_features)
        prompt_ids, prompt_mask, votes = self._look_up(features, prompt_ids, prompt_mask)
        embeds = self.prefix_embeds(features, prompt_ids)
        embeds = embeds.to(self.language.get_input_embeddings().weight.dtype)
        mask = prefix_mask(embeds, prompt_mask)
        # What neither the call nor its generation config says is the captioner's to say, not the language model's.
        self.language.generation_config = self.generation_config
        config, _ = self.language._prepare_generation_config(generation_config, **kwargs)
        begun = inputs_embeds if input_ids is None else input_ids
        if begun is not None:
            begun_mask = torch.ones(begun.shape[:2], dtype=torch.long, device=begun.device)
            begun_mask = begun_mask if attention_mask is None else attention_mask.to(torch.long)
            if input_ids is not None:
                end_ids = ends(config, input_ids.device)
                begun_mask = begun_mask * ~torch.isin(input_ids, end_ids)
                inputs_embeds = self._embed(input_ids) if inputs_embeds is None else inputs_embeds
                padding = end_ids[0] if config.pad_token_id is None else config.pad_token_id
                kwargs |= begun_ids(input_ids, begun_mask, padding)
            assert inputs_embeds is not None
            embeds = torch.cat([embeds, inputs_embeds.to(embeds.dtype)], dim=1)
            mask = torch.cat([mask, begun_mask.to(mask.device)], dim=1)
        if begun is not None or prompt_mask is not None:
            embeds, mask = padded_left(embeds, mask)
        if votes is not None and (begun is None or input_ids is not None):
            if begun is not None:
                lengths = begun_mask.sum(dim=1)
                votes.padding = lengths.max() - lengths
            kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or []), votes])
        return self.language.generate(
            inputs_embeds=embeds, attention_mask=mask, generation_config=generation_config, **kwargs
        )

    def _caption_states(
        self, prefix: Tensor, embeds: Tensor, prefix_mask: Tensor | None = None, **asked: Any
    ) -> tuple[Tensor, Any]:
        """(B, T, D): at t the state that token t is predicted from; and the language model's whole output.

        The last token predicts none and is not run. `prefix_mask` (B, prefix) is 0 where the prefix is padded, on the
        left.
        """
        embeds = embeds[:, :-1]
        inputs = torch.cat([prefix.to(embeds.dtype), embeds], dim=1)
        mask = None
        if prefix_mask is not None:
            mask = torch.cat([prefix_mask, prefix_mask.new_ones(embeds.shape[:2])], dim=1)
            # Rotary positions count from anywhere; learnt ones have to begin behind the padding, as in `generate`.
            if "position_ids" in inspect.signature(self.language.base_model.forward).parameters:
                asked = {**asked, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
        output = self.language.base_model(
            inputs_embeds=inputs,
            attention_mask=causal_mask(self.language, inputs, mask),
            use_cache=False,
            return_dict=True,
            **asked,
        )
        return output.last_hidden_state[:, prefix.shape[1] - 1 :], output

    def _embed(self, token_ids: Tensor) -> Tensor:
        embeddings: Tensor = self.language.get_input_embeddings()(token_ids)
        return embeddings

    def load_part(self, name: str, backbone: str) -> PreTrainedModel:
        """As of every tower; a language model comes with its head, CLIP's image tower with its projection."""
        return load_part(self.config, name, backbone)

    def set_prompt(self, token_ids: list[int]) -> None:
        """Give the model other tokens between the image and its caption."""
        self.config.prompt_ids = list(token_ids)
        self.prompt = torch.tensor(token_ids, dtype=torch.long, device=self.prompt.device)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """New layers as transformers starts them; the encoders start their own."""
        super()._init_weights(module)
        if isinstance(module, TransformerProjector):
            init.normal_(module.queries, std=self.config.initializer_range)
        elif module is self:  # `from_pretrained` leaves buffers that are not saved unset
            init.copy_(module.prompt, torch.tensor(self.config.prompt_ids, dtype=torch.long))
