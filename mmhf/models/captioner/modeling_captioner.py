"""Prefix captioner: an image encoder, a projector to a prefix of tokens, a causal language model that goes on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from mmhf.features.parts import VISION, FeaturePart
from mmhf.models.captioner.caption_loss import caption_loss
from mmhf.models.captioner.captioner_parts import (
    add_lora,
    describe_features,
    fresh_vision,
    is_lora,
    load_part,
    num_patches,
    read_features,
)
from mmhf.models.captioner.configuration_captioner import PrefixCaptionerConfig
from mmhf.models.captioner.projectors import TransformerProjector, build_projector
from mmhf.models.encoders import EncoderOutput, drop_unused, native_image_size
from mmhf.models.tower import TOWER, TowerModel

_DEFAULT_PREFIX_LENGTH = 10
_HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token", "subfolder", "force_download")


@dataclass
class PrefixCaptionerOutput(ModelOutput):
    """Output of [`PrefixCaptionerForConditionalGeneration`].

    Attributes:
        loss (`Tensor`, *optional*): Scalar, when labels were given.
        logits (`Tensor`, *optional*): (B, T, V), of the tokens of the captions, when no labels were given.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class PrefixCaptionerForConditionalGeneration(TowerModel, GenerationMixin):
    """Write a caption for an image.

    What the language model reads is the image as `prefix_length` tokens, the prompt, and the caption so far.

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
    # Adapters of a language model that is loaded from elsewhere are put in afterwards.
    _keys_to_ignore_on_load_unexpected = [r"^language\..*\.lora_"]

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
        self._prepare("vision")
        self.post_init()
        # After the new layers were started: adapters have their own way to start.
        self._prepare("language")
        self._leave_referenced_out()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load, and bring back from where they come from the parts that the folder only refers to.

        Raises:
            `OSError`: a part cannot be fetched.
        """
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
        config = kwargs.pop("config", None)
        if not isinstance(config, PreTrainedConfig):  # a release's own code may be there twice
            config = cls.config_class.from_pretrained(config or pretrained_model_name_or_path, **hub)
        with_info = kwargs.pop("output_loading_info", False)
        # By position, because what has a name goes into the generation config, too.
        stand_ins = [nn.Identity() if part in config.references else None for part in ("vision", "language")]
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *stand_ins, config=config, output_loading_info=True, **kwargs
        )
        model, info = loaded
        for part in config.references:
            model._bring_back(part)
        if "language" in config.references and config.lora is not None:
            weights = load_file(str(cached_file(pretrained_model_name_or_path, SAFE_WEIGHTS_NAME, **hub)))
            model.load_state_dict({name: tensor for name, tensor in weights.items() if is_lora(name)}, strict=False)
        return (model, info) if with_info else model

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """What the projector reads: (B, 3, H, W) → (B, width), or (B, patches, width)."""
        return read_features(self.vision, pixel_values, self.config.vision_features, self.vision_output)

    def feature_parts(self) -> tuple[FeaturePart, ...]:
        """The image encoder, up to what the projector reads."""
        return (VISION,)

    def prefix_embeds(self, image_features: Tensor) -> Tensor:
        """What the language model reads before a caption: (B, ..., width) → (B, prefix and prompt, D)."""
        prefix = self.projector(image_features)
        if not self.config.prompt_ids:
            return prefix
        prompt_ids = torch.tensor(self.config.prompt_ids, device=prefix.device)
        prompt = self._embed(prompt_ids)[None].expand(len(prefix), -1, -1)
        return torch.cat([prefix, prompt.to(prefix.dtype)], dim=1)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        image_features: Tensor | None = None,
        image_hidden: Tensor | None = None,
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
        """
        assert input_ids is not None
        if image_hidden is not None:
            image_features = self.resumed_image_features(image_hidden)
        elif image_features is None:
            assert pixel_values is not None
            image_features = self.image_features(pixel_values)
        hidden = self._caption_states(self.prefix_embeds(image_features), input_ids)
        head = self.language.get_output_embeddings()
        if labels is None:
            return PrefixCaptionerOutput(logits=head(hidden))
        loss = caption_loss(hidden, labels, head.weight, head.bias, num_items_in_batch=num_items_in_batch)
        return PrefixCaptionerOutput(loss=loss)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        pixel_values: Tensor | None = None,
        *,
        image_features: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Write captions for a batch, with a cache of keys and values.

        Args:
            pixel_values (`Tensor`): (B, 3, H, W), normalised as the image encoder expects.
            image_features (`Tensor`, *optional*): Instead of `pixel_values`, what `image_features` made of them.
            generation_config ([`GenerationConfig`], *optional*): Absent, the model's own.
            kwargs: As `GenerationMixin.generate` takes them: `num_beams`, `do_sample`, `max_new_tokens`, ...

        Returns:
            `Tensor`: (B, at most `max_new_tokens`) token ids, without the prefix and the prompt.
        """
        if image_features is None:
            assert pixel_values is not None
            image_features = self.image_features(pixel_values)
        prefix = self.prefix_embeds(image_features)
        prefix = prefix.to(self.language.get_input_embeddings().weight.dtype)
        mask = torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device)
        config = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        others = config.update(**kwargs)
        return self.language.generate(inputs_embeds=prefix, attention_mask=mask, generation_config=config, **others)

    def parameter_groups(self) -> dict[str, list[str]]:
        """`vision.*` by layer, `projector`, `language.*` by layer, and `language.lora`."""
        groups = {
            group: [name for name in names if not is_lora(name)] for group, names in super().parameter_groups().items()
        }
        if lora := [name for name, _ in self.named_parameters() if is_lora(name)]:
            groups["language.lora"] = lora
        return groups

    def _caption_states(self, prefix: Tensor, input_ids: Tensor) -> Tensor:
        """(B, T, D): at t the state that token t is predicted from. The last token predicts none and is not run."""
        embeds = self._embed(input_ids[:, :-1])
        output = self.language.base_model(
            inputs_embeds=torch.cat([prefix.to(embeds.dtype), embeds], dim=1), use_cache=False
        )
        return output.last_hidden_state[:, prefix.shape[1] - 1 :]

    def _embed(self, token_ids: Tensor) -> Tensor:
        return self.language.get_input_embeddings()(token_ids)

    def _bring_back(self, part: str) -> None:
        loaded: Any = load_part(self.config, part, self.config.references[part])
        example = next(self.projector.parameters())
        self.add_module(part, loaded.to(device=example.device, dtype=example.dtype).eval())
        self._prepare(part)
        self._leave_referenced_out()

    def _prepare(self, part: str) -> None:
        """Take out of an encoder what is not used, put adapters into the language model."""
        module: Any = self.get_submodule(part)
        if isinstance(module, nn.Identity):
            return
        if part == "vision":
            drop_unused(module, self.vision_output.unused)
        elif self.config.lora is not None:
            add_lora(module, self.config.lora)

    def refer_to(self, references: dict[str, str]) -> None:
        """Leave parts out of what is saved, as long as they are as they came from there.

        Args:
            references (`dict[str, str]`): `vision`, `language` → `pypi/NAME`, `timm/NAME` or `ORG/NAME@REVISION`.
        """
        self.config.references = dict(references)
        self._leave_referenced_out()

    def add_lora(self, values: dict[str, Any]) -> None:
        """Put adapters into the language model of a model that has none; see [`PrefixCaptionerConfig`]."""
        self.config.lora = dict(values)
        self._prepare("language")
        self._leave_referenced_out()

    def _leave_referenced_out(self) -> None:
        prefixes = tuple(f"{part}." for part in self.config.references)
        self._keys_to_ignore_on_save = {
            name for name in self.state_dict() if prefixes and name.startswith(prefixes) and not is_lora(name)
        }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """New layers as transformers starts them; the encoders start their own."""
        super()._init_weights(module)
        if isinstance(module, TransformerProjector):
            init.normal_(module.queries, std=self.config.initializer_range)


def complete_config(config: PrefixCaptionerConfig, *, image_size: int | None = None) -> None:
    """Find out what a config leaves open: the image features' shape and the length of the prefix.

    Raises:
        `ValueError`: the image encoder does not have the features, or a prefix length was given where the number of
            patches decides it.
    """
    if config.vision_output is None:
        shape = describe_features(config.vision_config, config.vision_features, image_size=image_size)
        config.vision_output = shape.to_dict()
    each_patch = config.projector == "mlp" and config.vision_features == "patches"
    if config.prefix_length is not None:
        return
    config.prefix_length = _DEFAULT_PREFIX_LENGTH
    if each_patch:
        shape = EncoderOutput.from_dict(config.vision_output)
        size = image_size or native_image_size(config.vision_config)
        config.prefix_length = num_patches(config.vision_config, shape, size)


def language_width(config: PrefixCaptionerConfig) -> int:
    """Width of the language model's token embeddings."""
    values = config.language_config.get_text_config()
    return int(values.to_dict().get("word_embed_proj_dim") or values.hidden_size)
