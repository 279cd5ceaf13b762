"""Dual encoder: an image tower and a text tower into one space, and a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from mmhf.features.parts import TEXT, VISION, FeaturePart
from mmhf.models.attention_masks import padding_mask
from mmhf.models.contrastive_loss import Contrast, EmbeddedPairs, caption_ids, contrastive_loss
from mmhf.models.dual_encoder.configuration_dual_encoder import DualEncoderConfig
from mmhf.models.dual_encoder.pooling import AttentionPooling, described_as, pool_caption
from mmhf.models.encoders import grid_tokens, pool_vision
from mmhf.models.tower import TOWER, TowerModel, TowerOutput, encoder_output

MAX_LOGIT_SCALE = 100.0
"""Similarities are never multiplied with more than this (Radford et al., "CLIP")."""


@dataclass
class DualEncoderOutput(TowerOutput):
    """Output of [`DualEncoderModel`].

    Attributes:
        loss (`Tensor`, *optional*): Scalar, with `return_loss`.
        logits_per_image (`Tensor`, *optional*): (images, texts), when there are both.
        logits_per_text (`Tensor`, *optional*): (texts, images).
        text_embeds (`Tensor`, *optional*): (texts, embedding_dim), of length 1.
        image_embeds (`Tensor`, *optional*): (images, embedding_dim), of length 1.
        logit_scale (`Tensor`, *optional*): (1,), what similarities are multiplied with; when there are both.
        logit_bias (`Tensor`, *optional*): (1,), what is then added.
        pooler_output (`Tensor`, *optional*): The embeddings again, when there are only images or only texts.
        text_model_output, vision_model_output (`BaseModelOutputWithPooling`, *optional*): As `get_text_features` and
            `get_image_features` give them, when hidden states or attentions were asked for.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    logit_scale: Tensor | None = None
    logit_bias: Tensor | None = None
    pooler_output: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None


class DualEncoderModel(TowerModel):
    """Embed images and texts into one space, where those that belong together are near.

    Args:
        config ([`DualEncoderConfig`]): Shapes, temperature and loss.
        vision (`PreTrainedModel`, *optional*): Image encoder with weights; absent = fresh from `config.vision_config`.
        text (`PreTrainedModel`, *optional*): Text encoder with weights; absent = fresh from `config.text_config`.
    """

    config_class = DualEncoderConfig
    input_modalities = ["image", "text"]
    parts = {
        "vision": TOWER,
        "text": TOWER,
        "projections": ("vision_pooling.", "text_pooling.", "vision_projection.", "text_projection."),
        "temperature": ("logit_scale", "logit_bias"),
    }
    # The loss is over a whole step's pairs already: Trainer must not divide it by a count of its own.
    accepts_loss_kwargs = False

    def __init__(
        self, config: DualEncoderConfig, vision: PreTrainedModel | None = None, text: PreTrainedModel | None = None
    ) -> None:
        super().__init__(config)
        self.vision_output = self._describe_tower("vision", described_as("vision", config.vision_pooling))
        self.text_output = self._describe_tower("text", described_as("text", config.text_pooling))
        self.vision = self._tower("vision", vision, self.vision_output)
        self.text = self._tower("text", text, self.text_output)
        self.vision_pooling = _learnt_pooling(config.vision_pooling, self.vision_output.width)
        self.text_pooling = _learnt_pooling(config.text_pooling, self.text_output.width)
        dimension, has_bias = config.embedding_dim, config.projection_bias
        self.vision_projection = nn.Linear(self.vision_output.width, dimension, bias=has_bias)
        self.text_projection = nn.Linear(self.text_output.width, dimension, bias=has_bias)
        self.logit_scale: Tensor
        # One value and not a scalar, which FSDP cannot shard.
        if config.learn_temperature:
            self.logit_scale = nn.Parameter(torch.empty(1))
        else:
            self.register_buffer("logit_scale", torch.empty(1))
        self.logit_bias = None if config.logit_bias is None else nn.Parameter(torch.empty(1))
        self.post_init()

    @classmethod
    def from_encoders(
        cls, config: DualEncoderConfig, *, vision: PreTrainedModel, text: PreTrainedModel
    ) -> DualEncoderModel:
        """Put fresh projections on two encoders; they are used, not copied, and keep their weights."""
        return cls(config, vision=vision, text=text)

    @property
    def contrast(self) -> Contrast:
        """The loss that the config describes."""
        config = self.config
        return Contrast(
            config.loss,
            config.label_smoothing,
            config.same_image,
            config.same_caption,
            tuple(config.matryoshka or ()),
            tuple(config.matryoshka_weights or ()),
        )

    @property
    def similarity_scale(self) -> Tensor:
        """(1,): what similarities are multiplied with."""
        return self.logit_scale.clamp(max=math.log(MAX_LOGIT_SCALE)).exp()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Run the image tower, as `CLIPModel.get_image_features` does.

        Args:
            pixel_values (`Tensor`): (B, 3, H, W), normalised as the image encoder expects.
            output_hidden_states, output_attentions (`bool`, *optional*): Also hidden states, attentions; absent = as
                the config says.
            return_dict (`bool`, *optional*): False = a tuple; absent = as the config says.

        Returns:
            `BaseModelOutputWithPooling`: the encoder's `last_hidden_state` and, as `pooler_output`, the embeddings
            (B, embedding_dim), whose length is not 1 yet.
        """
        output = self._run_vision(pixel_values, **self._asked(output_hidden_states, output_attentions))
        return encoder_output(output, self._project_image(self._read_image(output)))

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Run the text tower, as `CLIPModel.get_text_features` does.

        Args:
            input_ids (`Tensor`): (B, T).
            attention_mask (`Tensor`, *optional*): (B, T); absent = no padding.
            output_hidden_states, output_attentions, return_dict (`bool`, *optional*): As of `get_image_features`.

        Returns:
            `BaseModelOutputWithPooling`: as of `get_image_features`.
        """
        asked = self._asked(output_hidden_states, output_attentions)
        output, pooled = self._pooled_text(input_ids, attention_mask, **asked)
        return encoder_output(output, self.text_projection(pooled))

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Pooled output of the text encoder: (B, T) → (B, width)."""
        return self._pooled_text(input_ids, attention_mask)[1]

    def feature_parts(self) -> tuple[FeaturePart, ...]:
        """The image encoder, and the text encoder if its pooling is not learnt, which would need the tokens' mask."""
        return (VISION, TEXT) if self.text_pooling is None else (VISION,)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        return_loss: bool | None = None,
        image_features: Tensor | None = None,
        text_features: Tensor | None = None,
        image_hidden: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> DualEncoderOutput:
        """Embed images, texts or both, and compare them.

        Args:
            pixel_values (`Tensor`, *optional*): (images, 3, H, W), normalised as the image encoder expects.
            input_ids (`Tensor`, *optional*): (texts, T).
            attention_mask (`Tensor`, *optional*): (texts, T); absent = no padding.
            image_index (`Tensor`, *optional*): (B,), equal for rows of one image, -1 for rows that take part in
                nothing; absent = each row has an image of its own.
            return_loss (`bool`, *optional*): Also the loss of this batch, whose rows must be pairs. It needs
                `input_ids`, which tell equal captions, also where there are `text_features`.
            image_features, text_features (`Tensor`, *optional*): Of images, of texts, instead of running an encoder:
                what `image_features`, `text_features` made of them.
            image_hidden (`Tensor`, *optional*): (images, ...), instead of `pixel_values`: the image encoder's features
                at the boundary that [`HasFeatureParts`]'s `use_part` was told.
            output_hidden_states, output_attentions (`bool`, *optional*): Also the towers' own outputs with hidden
                states, attentions, where they are run; absent = as the config says.
            return_dict (`bool`, *optional*): False = a tuple; absent = as the config says.

        Raises:
            `ValueError`: no image, text or features; text features of a learnt pooling; a loss without `input_ids`.
        """
        if text_features is not None and self.text_pooling is not None:
            raise ValueError("text_features cannot stand for texts whose pooling is learnt")
        asked = self._asked(output_hidden_states, output_attentions)
        image_features, vision = self._seen(pixel_values, image_features, image_hidden, **asked)
        text = None
        if text_features is None and input_ids is not None:
            text, text_features = self._pooled_text(input_ids, attention_mask, **asked)
        if image_features is None and text_features is None:
            raise ValueError("DualEncoderModel needs pixel_values, input_ids or both, or their features")
        projected_image = None if image_features is None else self._project_image(image_features)
        projected_text = None if text_features is None else self.text_projection(text_features)
        image_embeds = None if projected_image is None else functional.normalize(projected_image, dim=-1)
        text_embeds = None if projected_text is None else functional.normalize(projected_text, dim=-1)
        if image_embeds is None or text_embeds is None:
            either = text_embeds if image_embeds is None else image_embeds
            output = DualEncoderOutput(text_embeds=text_embeds, image_embeds=image_embeds, pooler_output=either)
        elif not return_loss:
            output = self._compare(image_embeds, text_embeds)
        elif input_ids is None:
            raise ValueError("return_loss needs input_ids, by which equal captions are found")
        else:
            output = self._compare(image_embeds, text_embeds, image_index, caption_ids(input_ids, attention_mask))
        if asked:
            output.text_model_output = None if text is None else encoder_output(text, projected_text)
            output.vision_model_output = None if vision is None else encoder_output(vision, projected_image)
        return output

    def _compare(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        image_index: Tensor | None = None,
        captions: Tensor | None = None,
    ) -> DualEncoderOutput:
        """How alike images and texts are; with ids of equal captions, whose rows are pairs, also their loss."""
        scale = self.similarity_scale
        logits_per_text = scale * (text_embeds @ image_embeds.T)
        if self.logit_bias is not None:
            logits_per_text = logits_per_text + self.logit_bias
        loss = None
        if captions is not None:
            if image_index is None:
                image_index = torch.arange(len(image_embeds), device=image_embeds.device)
            pairs = EmbeddedPairs(image_embeds, text_embeds, image_index, captions)
            loss = contrastive_loss(pairs, scale, self.logit_bias, self.contrast)
        return DualEncoderOutput(
            loss=loss,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            logit_scale=scale,
            logit_bias=None if self.logit_bias is None else self.logit_bias.clone(),
        )

    def _read_image(self, output: Any) -> Tensor:
        if self.vision_pooling is not None:
            hidden: Tensor = output.last_hidden_state
            return hidden
        return pool_vision(output, self.config.vision_pooling, self.vision_output)

    def _project_image(self, features: Tensor) -> Tensor:
        if self.vision_pooling is not None:
            features = self.vision_pooling(grid_tokens(features, self.vision_output))
        projected: Tensor = self.vision_projection(features)
        return projected

    def _pooled_text(self, input_ids: Tensor, attention_mask: Tensor | None, **asked: bool) -> tuple[Any, Tensor]:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = padding_mask(self.text, attention_mask)
        output = self.text(input_ids=input_ids, attention_mask=mask, return_dict=True, **asked)
        pooled = pool_caption(
            output,
            input_ids,
            attention_mask,
            self.config.text_pooling,
            eot_token_id=self.config.eot_token_id,
            attention=self.text_pooling,
        )
        return output, pooled

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring a temperature that has left its bounds back: similarities are multiplied with 1 to 100."""
        self.logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """New layers as transformers starts them; the encoders start their own."""
        super()._init_weights(module)
        if isinstance(module, DualEncoderModel):
            init.constant_(module.logit_scale, -math.log(self.config.initial_temperature))
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias)
        elif isinstance(module, AttentionPooling):
            init.normal_(module.query, std=self.config.initializer_range)
        elif module in (self.vision_projection, self.text_projection):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)


def _learnt_pooling(pooling: str, width: int) -> AttentionPooling | None:
    return AttentionPooling(width) if pooling == "attention" else None
