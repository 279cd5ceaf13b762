"""From mmhf.models.image_classifier.modeling_image_classifier of mmhf 0.1.0, made by `mmhf release`; with mmhf installed this file is not used."""

from __future__ import annotations

import torch
from .classification_loss import ClassificationLoss, calibrated
from .configuration_image_classifier import BackboneForImageClassificationConfig
from .encoders import EncoderOutput, describe_vision, drop_unused, fresh_encoder, pool_vision, run_vision
from .feature_parts import FeaturePart, HasFeatureParts, VISION
from .layer_groups import layer_groups
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ImageClassifierOutput
from typing import Any

def classifier_head(config: BackboneForImageClassificationConfig, width: int) -> nn.Sequential:
    """Dropout-Linear-activation-Dropout-Linear, or Dropout-Linear without a hidden layer: (B, width) → (B, labels)."""
    num_labels = len(config.id2label or {})
    first, second = config.head_dropout
    if config.head_hidden_dim is None:
        return nn.Sequential(nn.Dropout(first), nn.Linear(width, num_labels))
    return nn.Sequential(
        nn.Dropout(first),
        nn.Linear(width, config.head_hidden_dim),
        ACT2FN[config.head_activation],
        nn.Dropout(second),
        nn.Linear(config.head_hidden_dim, num_labels),
    )


class BackboneForImageClassification(HasFeatureParts, PreTrainedModel):
    """Classify images.

    Args:
        config ([`BackboneForImageClassificationConfig`]): Shapes and loss.
        vision (`PreTrainedModel`, *optional*): Image encoder with weights, used and not copied; absent = fresh from
            `config.vision_config`.
    """

    config_class = BackboneForImageClassificationConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # Trainer passes `num_items_in_batch`, so that accumulated batches weigh each row alike.
    accepts_loss_kwargs = True

    def __init__(self, config: BackboneForImageClassificationConfig, vision: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.vision_output is None:
            config.vision_output = describe_vision(config.vision_config, config.vision_pooling).to_dict()
        self.vision_output = EncoderOutput.from_dict(config.vision_output)
        self.vision = fresh_encoder(config.vision_config) if vision is None else vision
        drop_unused(self.vision, self.vision_output.unused)
        self.head = classifier_head(config, self.vision_output.width)
        self.loss = ClassificationLoss(
            config.class_weights,
            config.label_smoothing,
            focal_gamma=config.focal_gamma,
            logit_adjustment=config.logit_adjustment,
        )
        self.post_init()

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Pooled output of the image encoder: (B, 3, H, W) → (B, width)."""
        output = run_vision(self.vision, pixel_values, self.config.vision_pooling)
        return pool_vision(output, self.config.vision_pooling, self.vision_output)

    def classify(
        self,
        image_features: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ImageClassifierOutput:
        """From the encoder's pooled output to logits and loss."""
        logits = self.head(image_features)
        loss = None if labels is None else self.loss(logits, labels, num_items_in_batch)
        return ImageClassifierOutput(loss=loss, logits=calibrated(logits, self.config.calibration_temperature))

    def feature_parts(self) -> tuple[FeaturePart, ...]:
        """The image encoder with its pooling."""
        return (VISION,)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        image_features: Tensor | None = None,
        image_hidden: Tensor | None = None,
    ) -> ImageClassifierOutput:
        """Classify a batch.

        Args:
            pixel_values (`Tensor`, *optional*): (B, 3, H, W), normalised as the image encoder expects.
            labels (`Tensor`, *optional*): (B,) class ids, -100 = no loss for this row; or (B, num_labels)
                probabilities.
            num_items_in_batch (`Tensor` or `int`, *optional*): What the loss is divided by; absent, the batch's count.
            image_features (`Tensor`, *optional*): (B, width), instead of `pixel_values`: what `image_features` made
                of them.
            image_hidden (`Tensor`, *optional*): (B, ...), instead of `pixel_values`: the encoder's features at the
                boundary that [`HasFeatureParts`]'s `use_part` was told.

        Raises:
            `ValueError`: neither images nor their features.

        Returns:
            `ImageClassifierOutput` with `logits` (B, num_labels), divided by the config's temperature, and `loss`, a
            scalar, of the logits before that, when labels were given.
        """
        if image_hidden is not None:
            image_features = self.resumed_image_features(image_hidden)
        elif image_features is None:
            if pixel_values is None:
                raise ValueError("the model needs pixel_values or image_features")
            image_features = self.image_features(pixel_values)
        return self.classify(image_features, labels, num_items_in_batch)

    def parameter_groups(self) -> dict[str, list[str]]:
        """`vision.*` by layer, and `head`."""
        groups = {
            f"vision.{group}": [f"vision.{name}" for name in names]
            for group, names in layer_groups(self.vision).items()
        }
        groups["head"] = [name for name, _ in self.named_parameters() if name.startswith("head.")]
        return groups

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        # transformers would set its own layers only, and leave timm's encoder as it is.
        if self.vision.supports_gradient_checkpointing:
            self.vision._set_gradient_checkpointing(enable, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """New layers as transformers starts them; the encoder starts its own."""
        super()._init_weights(module)
        if isinstance(module, ClassificationLoss):
            module.restore_buffers()


from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES  # noqa: E402

MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES['mmhf_backbone'] = 'BackboneForImageClassification'
