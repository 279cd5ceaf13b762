"""Image-text fusion classifier: two encoders, one shared space, one way to fuse, one head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ModelOutput

from mmhf.models.classification_loss import ClassificationLoss
from mmhf.models.encoders import (
    EncoderOutput,
    describe_text,
    describe_vision,
    drop_unused,
    fresh_encoder,
    pool_text_output,
    pool_vision,
    run_vision,
)
from mmhf.models.fusion.configuration_fusion import FusionConfig
from mmhf.models.layer_groups import layer_groups


@dataclass
class FusionOutput(ModelOutput):
    """Output of [`FusionForImageTextClassification`].

    Attributes:
        loss (`Tensor`, *optional*): Scalar, when labels were given.
        logits (`Tensor`): (B, num_labels).
        image_embeds (`Tensor`): (B, embedding_dim), as they were fused.
        text_embeds (`Tensor`): (B, embedding_dim), as they were fused.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class Fusion(nn.Module):
    """Fuse two embeddings of width D and pass them through the hidden layers.

    `concat_mlp`: [v; t] (2D). `product_difference`: [v; t; v·t; |v − t|] (4D). `weighted_sum`: softmax(w)·(v, t) (D).
    `gated`: g·v + (1 − g)·t with g = sigmoid(W[v; t] + b) per dimension (D).
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.strategy = config.strategy
        width = config.embedding_dim
        if self.strategy == "weighted_sum":
            self.modality_weights = nn.Parameter(torch.zeros(2))
        elif self.strategy == "gated":
            self.gate = nn.Linear(2 * width, width)
        widths = [{"concat_mlp": 2, "product_difference": 4}.get(self.strategy, 1) * width, *config.hidden_dims]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), ACT2FN[config.activation], nn.Dropout(config.dropout)]
        self.hidden = nn.Sequential(*(layers or [nn.Dropout(config.dropout)]))
        self.output_width = widths[-1]

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """(B, D) and (B, D) → (B, output_width)."""
        return self.hidden(self.fuse(image_embeds, text_embeds))

    def fuse(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """The strategy alone: (B, D) and (B, D) → (B, D), (B, 2D) or (B, 4D)."""
        if self.strategy == "weighted_sum":
            image_share, text_share = self.modality_weights.softmax(dim=0)
            return image_share * image_embeds + text_share * text_embeds
        both = torch.cat([image_embeds, text_embeds], dim=-1)
        if self.strategy == "gated":
            gate = self.gate(both).sigmoid()
            return gate * image_embeds + (1 - gate) * text_embeds
        if self.strategy == "product_difference":
            product, difference = image_embeds * text_embeds, (image_embeds - text_embeds).abs()
            return torch.cat([both, product, difference], dim=-1)
        return both


class FusionForImageTextClassification(PreTrainedModel):
    """Classify pairs of an image and a text.

    Args:
        config ([`FusionConfig`]): Shapes and loss.
        vision (`PreTrainedModel`, *optional*): Image encoder with weights; absent = fresh from `config.vision_config`.
        text (`PreTrainedModel`, *optional*): Text encoder with weights; absent = fresh from `config.text_config`.
    """

    config_class = FusionConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # Trainer passes `num_items_in_batch`, so that accumulated batches weigh each row alike.
    accepts_loss_kwargs = True

    def __init__(
        self, config: FusionConfig, vision: PreTrainedModel | None = None, text: PreTrainedModel | None = None
    ) -> None:
        super().__init__(config)
        if config.vision_output is None:
            config.vision_output = describe_vision(config.vision_config, config.vision_pooling).to_dict()
        if config.text_output is None:
            config.text_output = describe_text(config.text_config, config.text_pooling).to_dict()
        self.vision_output = EncoderOutput.from_dict(config.vision_output)
        self.text_output = EncoderOutput.from_dict(config.text_output)
        self.vision = fresh_encoder(config.vision_config) if vision is None else vision
        self.text = fresh_encoder(config.text_config) if text is None else text
        drop_unused(self.vision, self.vision_output.unused)
        drop_unused(self.text, self.text_output.unused)
        self.vision_projection = nn.Linear(self.vision_output.width, config.embedding_dim)
        self.text_projection = nn.Linear(self.text_output.width, config.embedding_dim)
        self.fusion = Fusion(config)
        self.head = nn.Linear(self.fusion.output_width, len(config.id2label or {}))
        self.loss = ClassificationLoss(config.class_weights, config.label_smoothing)
        self.post_init()

    @classmethod
    def from_encoders(
        cls, config: FusionConfig, *, vision: PreTrainedModel, text: PreTrainedModel
    ) -> FusionForImageTextClassification:
        """Put a fresh head on two encoders; they are used, not copied, and keep their weights."""
        return cls(config, vision=vision, text=text)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Pooled output of the image encoder: (B, 3, H, W) → (B, vision width)."""
        output = run_vision(self.vision, pixel_values, self.config.vision_pooling)
        return pool_vision(output, self.config.vision_pooling, self.vision_output)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Pooled output of the text encoder: (B, T) → (B, text width)."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        output = self.text(input_ids=input_ids, attention_mask=attention_mask)
        return pool_text_output(output, attention_mask, self.config.text_pooling)

    def classify(
        self,
        image_features: Tensor,
        text_features: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> FusionOutput:
        """From the encoders' pooled outputs to logits and loss."""
        image_embeds = self.vision_projection(image_features)
        text_embeds = self.text_projection(text_features)
        if self.config.normalize:
            image_embeds = functional.normalize(image_embeds, dim=-1)
            text_embeds = functional.normalize(text_embeds, dim=-1)
        logits = self.head(self.fusion(image_embeds, text_embeds))
        loss = None if labels is None else self.loss(logits, labels, num_items_in_batch)
        return FusionOutput(loss=loss, logits=logits, image_embeds=image_embeds, text_embeds=text_embeds)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> FusionOutput:
        """Classify a batch.

        Args:
            pixel_values (`Tensor`): (B, 3, H, W), normalised as the image encoder expects.
            input_ids (`Tensor`): (B, T).
            attention_mask (`Tensor`, *optional*): (B, T); absent = no padding.
            labels (`Tensor`, *optional*): (B,), class ids; -100 = no loss for this row.
            num_items_in_batch (`Tensor` or `int`, *optional*): What the loss is divided by; absent, the batch's count.
        """
        image_features = self.image_features(pixel_values)
        text_features = self.text_features(input_ids, attention_mask)
        return self.classify(image_features, text_features, labels, num_items_in_batch)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        # transformers would set its own layers only, and leave timm's encoder as it is.
        for encoder in (self.vision, self.text):
            if encoder.supports_gradient_checkpointing:
                encoder._set_gradient_checkpointing(enable, *args, **kwargs)

    def parameter_groups(self) -> dict[str, list[str]]:
        """`vision.*` and `text.*` by layer, `fusion` (projections, strategy, hidden layers) and `head`."""
        groups = {
            f"{tower}.{group}": [f"{tower}.{name}" for name in names]
            for tower, encoder in (("vision", self.vision), ("text", self.text))
            for group, names in layer_groups(encoder).items()
        }
        fused = ("vision_projection.", "text_projection.", "fusion.")
        names = [name for name, _ in self.named_parameters()]
        groups["fusion"] = [name for name in names if name.startswith(fused)]
        groups["head"] = [name for name in names if name.startswith("head.")]
        return groups

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """New layers as transformers starts them; the encoders start their own."""
        super()._init_weights(module)
        if isinstance(module, Fusion) and module.strategy == "weighted_sum":
            init.zeros_(module.modality_weights)
        elif isinstance(module, ClassificationLoss):
            module.restore_weight()
