"""Image classifier: any timm or transformers image encoder, pooled, and a head of one or two layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import can_return_tuple

from mmhf.features.parts import VISION, FeaturePart
from mmhf.models.classification_loss import calibrated
from mmhf.models.image_classifier.configuration_image_classifier import BackboneForImageClassificationConfig
from mmhf.models.targets import last_layer, target_of
from mmhf.models.tower import TOWER, TowerModel


def classifier_head(config: BackboneForImageClassificationConfig, width: int) -> nn.Sequential:
    """Dropout-Linear-activation-Dropout-Linear, or Dropout-Linear without a hidden layer: (B, width) → (B, …)."""
    first, second = config.head_dropout
    if config.head_hidden_dim is None:
        return nn.Sequential(nn.Dropout(first), last_layer(config, width))
    return nn.Sequential(
        nn.Dropout(first),
        nn.Linear(width, config.head_hidden_dim),
        ACT2FN[config.head_activation],
        nn.Dropout(second),
        last_layer(config, config.head_hidden_dim),
    )


class BackboneForImageClassification(TowerModel):
    """Classify images.

    Args:
        config ([`BackboneForImageClassificationConfig`]): Shapes and loss.
        vision (`PreTrainedModel`, *optional*): Image encoder with weights, used and not copied; absent = fresh from
            `config.vision_config`.
    """

    config_class = BackboneForImageClassificationConfig
    parts = {"vision": TOWER, "head": ("head.",)}

    def __init__(self, config: BackboneForImageClassificationConfig, vision: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.vision_output = self._describe_tower("vision", config.vision_pooling)
        self.vision = self._tower("vision", vision, self.vision_output)
        self.head = classifier_head(config, self.vision_output.width)
        self.loss = target_of(config).make_loss(config)
        self.post_init()

    def classify(
        self,
        image_features: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        *,
        other_views: Sequence[Tensor] = (),
    ) -> ImageClassifierOutput:
        """From the encoder's pooled output to logits and loss.

        Args:
            image_features, labels, num_items_in_batch: As `forward` takes them.
            other_views (`Sequence[Tensor]`): Features of further views of the images, to average over.
        """
        logits = self.head(image_features)
        if other_views:
            logits = self.loss.average([logits, *(self.head(features) for features in other_views)])
        loss = None if labels is None else self.loss(logits, labels, num_items_in_batch)
        outputs = calibrated(self.loss.outputs(logits), self.config.calibration_temperature)
        return ImageClassifierOutput(loss=loss, logits=outputs)

    def feature_parts(self) -> tuple[FeaturePart, ...]:
        """The image encoder with its pooling."""
        return (VISION,)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        image_features: Tensor | None = None,
        image_hidden: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ImageClassifierOutput:
        """Classify a batch.

        Args:
            pixel_values (`Tensor`, *optional*): (B, 3, H, W), normalised as the image encoder expects.
            labels (`Tensor`, *optional*): (B,) class ids, -100 = no loss for this row; or (B, num_labels)
                probabilities. With several labels a row, (B, num_labels) of 0, 1 and, without a loss, -100. With
                numbers to learn, (B, num_labels) of these, or (B,) where it is one; NaN = no loss.
            num_items_in_batch (`Tensor` or `int`, *optional*): What the loss is divided by; absent, the batch's count.
            image_features (`Tensor`, *optional*): (B, width), instead of `pixel_values`: what `image_features` made
                of them.
            image_hidden (`Tensor`, *optional*): (B, ...), instead of `pixel_values`: the encoder's features at the
                boundary that [`HasFeatureParts`]'s `use_part` was told.

            output_hidden_states, output_attentions (`bool`, *optional*): Also the image encoder's hidden states,
                attentions, where it is run; absent = as the config says.
            return_dict (`bool`, *optional*): False = a tuple; absent = as the config says.

        Raises:
            `ValueError`: neither images nor their features; attentions of a timm encoder; features where the config
                has `views`.

        Returns:
            `ImageClassifierOutput` with `logits` (B, num_labels), divided by the config's temperature, or the numbers
            themselves, and `loss`, a scalar, of the logits before that, when labels were given. In eval mode they
            stand for the mean over the config's `views`.
        """
        asked = self._asked(output_hidden_states, output_attentions)
        features, vision = self._seen(pixel_values, image_features, image_hidden, **asked)
        if features is None:
            raise ValueError("the model needs pixel_values or image_features")
        views = self._other_views(pixel_values, image_features, image_hidden)
        others = [self.image_features(view) for view in views]
        output = self.classify(features, labels, num_items_in_batch, other_views=others)
        if vision is not None:
            output.hidden_states, output.attentions = vision.get("hidden_states"), vision.get("attentions")
        return output
