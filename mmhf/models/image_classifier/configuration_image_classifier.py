"""Configuration of the image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mmhf.models.sub_configs import SMALL_VIT, sub_config


class BackboneForImageClassificationConfig(PreTrainedConfig):
    """Configuration of [`BackboneForImageClassification`].

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*): Image encoder; a timm encoder is a `timm_wrapper`.
        vision_backbone (`str`, *optional*): Name of the image encoder as a recipe gives it.
        vision_pooling (`str`): `avg`, `max`, `concat`, `cls` or `pooler`.
        vision_output (`dict`, *optional*): [`EncoderOutput`] of the encoder; found when absent.
        head_hidden_dim (`int`, *optional*): Width of the head's hidden layer; absent = a linear classifier.
        head_dropout (`Sequence[float]`): Dropout before the hidden layer and before the last one; without a hidden
            layer the first counts.
        head_activation (`str`): Name of an activation that transformers knows.
        label_smoothing (`float`): Share of the target spread evenly over the classes.
        class_weights (`list[float]`, *optional*): Weight of each class in the loss.
        focal_gamma (`float`): Exponent of the loss's focal factor; 0 = cross-entropy.
        logit_adjustment (`list[float]`, *optional*): What the loss adds to the logits of each class.
        asymmetric (`dict[str, float]`, *optional*): `gamma_positive`, `gamma_negative` and `margin` of the loss, with
            several labels a row.
        calibration_temperature (`float`): What the logits are divided by, fitted on the validation split.
        abstain_below (`float`, *optional*): Probability of the predicted class below which the answer is to be left
            to a person.
        thresholds (`list[float]`, *optional*): With several labels a row, the probability from which on each is given;
            absent = 0.5.
        initializer_range (`float`): Standard deviation of new weights.
    """

    model_type = "mmhf_backbone"
    sub_configs = {"vision_config": AutoConfig}
    # Trainer gathers the other outputs over the whole split.
    keys_to_ignore_at_inference = ["hidden_states", "attentions"]

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        *,
        vision_backbone: str | None = None,
        vision_pooling: str = "avg",
        vision_output: dict[str, Any] | None = None,
        head_hidden_dim: int | None = 512,
        head_dropout: Sequence[float] = (0.3, 0.15),
        head_activation: str = "relu",
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        focal_gamma: float = 0.0,
        logit_adjustment: list[float] | None = None,
        asymmetric: dict[str, float] | None = None,
        calibration_temperature: float = 1.0,
        abstain_below: float | None = None,
        thresholds: list[float] | None = None,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        if len(head_dropout) != 2:
            raise ValueError(f"head_dropout: expected two numbers, before each layer of the head, got {head_dropout}")
        self.vision_config = sub_config(vision_config, default=SMALL_VIT)
        self.vision_backbone = vision_backbone
        self.vision_pooling = vision_pooling
        self.vision_output = vision_output
        self.head_hidden_dim = head_hidden_dim
        self.head_dropout = list(head_dropout)
        self.head_activation = head_activation
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else list(class_weights)
        self.focal_gamma = focal_gamma
        self.logit_adjustment = None if logit_adjustment is None else list(logit_adjustment)
        self.asymmetric = None if asymmetric is None else dict(asymmetric)
        self.calibration_temperature = calibration_temperature
        self.abstain_below = abstain_below
        self.thresholds = None if thresholds is None else list(thresholds)
        self.initializer_range = initializer_range
        kwargs.setdefault("problem_type", "single_label_classification")
        super().__init__(**kwargs)
        by_class = {
            "class weights": self.class_weights,
            "logit adjustments": self.logit_adjustment,
            "thresholds": self.thresholds,
        }
        for what, numbers in by_class.items():
            if numbers is not None and len(numbers) != self.num_labels:
                raise ValueError(f"{len(numbers)} {what} for {self.num_labels} labels")
