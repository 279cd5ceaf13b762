"""The sections about training: optimizer, stages, averages, stored features, checkpoints, trackers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmhf.recipe.augment_sections import AugmentSection
from mmhf.recipe.sections import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section, SplitName


class OptimizerSection(Section):
    name: Literal["adam", "adamw", "sgd"] = "adamw"
    betas: Annotated[list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    eps: PositiveFloat = 1e-8
    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: NonNegativeFloat | None = None
    """Absent: `training.weight_decay`. Biases and normalisation weights are never decayed."""


ScheduleName = Literal[
    "constant", "linear", "cosine", "one_cycle", "step", "polynomial", "cosine_with_restarts", "inverse_sqrt"
]


class PlateauSection(Section):
    """When a metric counts as stalled."""

    metric: str = "loss"
    """A metric of the validation split, such as `loss` or `f1_macro`."""
    patience: PositiveInt = 5
    """Evaluations without improvement."""
    min_delta: NonNegativeFloat = 0.0
    """What counts as an improvement."""


class StageSection(Section):
    name: Annotated[str, Field(min_length=1)]
    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    """Optimizer steps; give either this or `epochs`."""
    train: str | list[str] = "all"
    """Groups that train: names (`head`), prefixes (`vision`), globs (`vision.stages.*`), `vision:last 30%`,
    `text:last 2`, `all`; `!NAME` takes away."""
    learning_rate: NonNegativeFloat | dict[str, NonNegativeFloat] | None = None
    """One rate, or one by selector (a later entry wins); absent, or not named: `training.learning_rate`."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Factor of the learning rate for each layer further from the output of its encoder."""
    schedule: ScheduleName | None = None
    """Shape of the learning rate over the stage; absent: `training.lr_scheduler_type`."""
    warmup: NonNegativeFloat | dict[str, NonNegativeFloat] | None = None
    """Steps, or a share of the stage below 1, for all or by selector; absent: `training.warmup_steps`."""
    min_lr: NonNegativeFloat | dict[str, NonNegativeFloat] = 0.0
    """Where the schedule ends, for all or by selector."""
    decay_rate: PositiveFloat = 0.1
    """Schedule `step`: what the rate is multiplied with."""
    decay_every: PositiveFloat = 1.0
    """Schedule `step`: epochs between two decays."""
    optimizer: OptimizerSection | dict[str, OptimizerSection] | None = None
    """The stage's own optimizer, for all that it trains or by selector; absent: the run's."""
    batch_size: PositiveInt | None = None
    """Samples per device and step in this stage; absent: `training.per_device_train_batch_size`."""
    augment: AugmentSection | None = None
    """Random changes to this stage's images (`{}` for none); absent: `data.augment`."""
    label_smoothing: Fraction | None = None
    """Absent: `loss.label_smoothing`."""
    batch_norm: Literal["train", "frozen"] = "train"
    """`frozen`: batch-norm layers that train keep their statistics; only their weights and biases move."""
    unfreeze_on_plateau: PlateauSection | None = None
    """Go on to the next stage when the metric stalls; absent: the recipe's `unfreeze_on_plateau`."""
    carry_best: str | None = None
    """A metric of the validation split: the next stage starts from the weights that were best by it in this one."""

    @model_validator(mode="after")
    def _has_one_length(self) -> StageSection:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"stage {self.name!r} needs either `epochs` or `steps`")
        return self

    @property
    def has_own_batches(self) -> bool:
        """Whether the stage's batches differ from those of other stages, so that it begins and ends with an epoch."""
        return self.batch_size is not None or self.augment is not None


class EmaSection(Section):
    """Average the weights while training; evaluation and the saved model use the averages."""

    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Share of the average that stays at each optimizer step."""
    warmup: bool = True
    """Begin with a lower decay, (1 + n) / (10 + n) after n steps, so that the first weights are soon forgotten."""


class CheckpointsSection(Section):
    """When a run is saved; `training.save_total_limit` says how many checkpoints are kept, the best one always."""

    every_epochs: PositiveInt = 1


class EvaluationSection(Section):
    splits: list[SplitName] = ["validation", "test"]
    """Splits to evaluate when training is over; those that the data lacks are left out."""


class TrackingSection(Section):
    """Settings of trackers that TrainingArguments has no field for; `training.report_to` chooses the trackers."""

    mlflow_uri: str = "sqlite:///mlflow.db"


CacheMode = Literal["auto", "on", "off"]


class CacheSection(Section):
    mode: CacheMode = "auto"
    """`auto`: where it saves time, as `mmhf plan` shows; `on`: wherever it is possible."""
    folder: str | None = None
    """Absent: `$MMHF_FEATURES`, else `mmhf/features` in the cache folder of Hugging Face (`$HF_HOME`). Several runs
    may share it."""
    max_bytes: PositiveInt | None = None
    """What all features in the folder may take; those that were not used for the longest time go first. Absent: as
    much as the disk has."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """How features are stored; absent: as the encoder gives them, so that nothing is lost."""
    views: PositiveInt | None = None
    """Random changes to images: each image is changed in this many ways, drawn once, and each epoch sees one of them;
    absent: flips are cached both ways, and images that change in another way are not."""


CacheChoice = CacheMode | CacheSection
"""What a recipe may write behind `cache:`, `cache: on` being short for `cache: {mode: on}`."""


def cache_section(choice: CacheChoice) -> CacheSection:
    """The section that a recipe's `cache:` stands for."""
    return choice if isinstance(choice, CacheSection) else CacheSection(mode=choice)


_LOWER_IS_BETTER = (
    "loss",
    "error",
    "perplexity",
    "median_rank",
    "mean_rank",
    "alignment",
    "uniformity",
    "ece",
    "ece_uncalibrated",
    "nll",
    "brier",
    "aurc",
    "gap",
)


def greater_is_better(metric: str) -> bool:
    """Whether more of a metric is better.

    Args:
        metric (`str`): Its name; more may stand before it, behind `_`: `eval_loss`, `test_image_uniformity`.
    """
    return not f"_{metric}".endswith(tuple(f"_{name}" for name in _LOWER_IS_BETTER))
