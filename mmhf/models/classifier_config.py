"""What the configurations of classifiers share: the loss, and how logits become decisions."""

from __future__ import annotations

from typing import Any

from mmhf.models.tower_config import TowerConfig


class ClassifierConfig(TowerConfig):
    """A configuration with `num_labels` labels.

    Args:
        label_smoothing (`float`): Share of the target spread evenly over the classes.
        class_weights (`list[float]`, *optional*): Weight of each class in the loss.
        focal_gamma (`float`): Exponent of the loss's focal factor; 0 = cross-entropy.
        logit_adjustment (`list[float]`, *optional*): What the loss adds to the logits of each class.
        asymmetric (`dict[str, float]`, *optional*): `gamma_positive`, `gamma_negative` and `margin` of the loss, with
            several labels a row.
        huber_delta (`float`, *optional*): Of the loss, with numbers to learn; absent = squared error.
        target_mean, target_std (`list[float]`, *optional*): Of each number to learn, in the training split; absent = 0
            and 1. The model answers in the units that these are in.
        ordinal (`bool`): Whether the classes have an order, from the first to the last.
        calibration_temperature (`float`): What the logits are divided by, fitted on the validation split.
        abstain_below (`float`, *optional*): Probability of the predicted class below which the answer is to be left
            to a person.
        thresholds (`list[float]`, *optional*): With several labels a row, the probability from which on each is given;
            absent = 0.5.
        views (`dict`, *optional*): Arguments of [`ImageViews`]: in eval mode, answers are averaged over these views of
            each image; absent = the image as it is.
        initializer_range (`float`): Standard deviation of new weights.
        **kwargs: Those of [`TowerConfig`].

    Raises:
        ValueError: There are not as many weights, adjustments, thresholds, means or deviations as labels, or classes
            have an order and `problem_type` says that a row has not one of them.
    """

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        focal_gamma: float = 0.0,
        logit_adjustment: list[float] | None = None,
        asymmetric: dict[str, float] | None = None,
        huber_delta: float | None = None,
        target_mean: list[float] | None = None,
        target_std: list[float] | None = None,
        ordinal: bool = False,
        calibration_temperature: float = 1.0,
        abstain_below: float | None = None,
        thresholds: list[float] | None = None,
        views: dict[str, Any] | None = None,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else list(class_weights)
        self.focal_gamma = focal_gamma
        self.logit_adjustment = None if logit_adjustment is None else list(logit_adjustment)
        self.asymmetric = None if asymmetric is None else dict(asymmetric)
        self.huber_delta = huber_delta
        self.target_mean = None if target_mean is None else list(target_mean)
        self.target_std = None if target_std is None else list(target_std)
        self.ordinal = ordinal
        self.calibration_temperature = calibration_temperature
        self.abstain_below = abstain_below
        self.thresholds = None if thresholds is None else list(thresholds)
        self.views = None if views is None else dict(views)
        self.initializer_range = initializer_range
        super().__init__(**kwargs)
        by_class = {
            "class weights": self.class_weights,
            "logit adjustments": self.logit_adjustment,
            "thresholds": self.thresholds,
            "means": self.target_mean,
            "deviations": self.target_std,
        }
        for what, numbers in by_class.items():
            if numbers is not None and len(numbers) != self.num_labels:
                raise ValueError(f"{len(numbers)} {what} for {self.num_labels} labels")
        if ordinal and self.problem_type not in (None, "single_label_classification"):
            raise ValueError(f"ordinal: a row has one class, and problem_type is {self.problem_type!r}")
