"""The sections about training: optimizer, stages, averages, stored features, checkpoints, trackers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

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
    start: Literal["linear_probe"] | None = None
    """What linear layers start from in this stage: `linear_probe` is the best fit to the stored features, by the
    validation split; of an image classifier's head a logistic regression, of a dual encoder's projections the linear
    maps of regularised canonical correlation analysis. Absent: from the weights as they are."""
    train: str | list[str] = "all"
    """Groups that train: names (`head`), prefixes (`vision`), globs (`vision.stages.*`), `vision:last 30%`,
    `text:last 2`, `all`; `!NAME` excludes."""
    learning_rate: NonNegativeFloat | dict[str, NonNegativeFloat] | None = None
    """One rate, or one per selector (later entries win); absent, or not named: `training.learning_rate`."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Factor on the learning rate for each layer further away from the encoder's output."""
    schedule: ScheduleName | None = None
    """Schedule of the learning rate over the stage; absent: `training.lr_scheduler_type`."""
    warmup: NonNegativeFloat | dict[str, NonNegativeFloat] | None = None
    """Steps, or below 1 a share of the stage, for all groups or per selector; absent: `training.warmup_steps`."""
    min_lr: NonNegativeFloat | dict[str, NonNegativeFloat] = 0.0
    """Final learning rate of the schedule, for all groups or per selector."""
    decay_rate: PositiveFloat = 0.1
    """Schedule `step`: factor applied to the rate."""
    decay_every: PositiveFloat = 1.0
    """Schedule `step`: epochs between two decays."""
    cycle_beta1: Annotated[list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=2, max_length=2)] | None = (
        None
    )
    """Schedule `one_cycle`: Adam's first beta falls from the second number to the first while the rate rises, and
    rises again while it falls; torch's OneCycleLR does so by default, with `[0.85, 0.95]`. Absent: it stays."""
    optimizer: OptimizerSection | dict[str, OptimizerSection] | None = None
    """The stage's own optimizer, for all groups or per selector; absent: the run's."""
    batch_size: PositiveInt | None = None
    """Samples per device and step in this stage; absent: `training.per_device_train_batch_size`."""
    augment: AugmentSection | None = None
    """Random changes to this stage's images (`{}` for none); absent: `data.augment`."""
    label_smoothing: Fraction | None = None
    """Absent: `loss.label_smoothing`."""
    batch_norm: Literal["train", "frozen"] = "train"
    """`frozen`: batch-norm layers in training keep their statistics; only their weights and biases change."""
    unfreeze_on_plateau: PlateauSection | None = None
    """Go on to the next stage when the metric stalls; absent: the recipe's `unfreeze_on_plateau`."""
    carry_best: str | None = None
    """A metric of the validation split: the next stage starts from the weights of this stage that were best by it."""

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
    """Share of the old average that is kept at each optimizer step."""
    warmup: bool = True
    """Begin with a lower decay, (1 + n) / (10 + n) after n steps, so that the initial weights are soon forgotten."""


class CheckpointsSection(Section):
    """When checkpoints are saved; `training.save_total_limit` says how many are kept. The best one always is."""

    every_epochs: PositiveInt = 1


class HistorySection(Section):
    """What a run's recipe was before it was changed on the way; `mmhf train` writes it into `recipe.yaml`."""

    until_step: PositiveInt
    """Optimizer steps since the run's start when it was changed."""
    changes: list[str] = []
    """What was changed, as `key: old → new`, including what no recipe says, such as the number of processes."""
    sections: dict[str, Any]
    """The changed sections as they were before, whole; the others were as they are now."""


def _as_mode(given: Any) -> Any:
    """Recipes of earlier releases say `true` and `false`."""
    return ("auto" if given else "off") if isinstance(given, bool) else given


class EvaluationSection(Section):
    every_epochs: PositiveInt = 1
    """With `training.eval_strategy: epoch`: epochs from one evaluation to the next; the end of a stage has one."""
    splits: list[SplitName] = ["validation", "test"]
    """Splits to evaluate after training; splits that the data lacks are left out."""
    subgroups: list[str] = []
    """Columns of the data, such as `source`. The metrics are reported for each of their values: of captions, and of
    retrieval among the rows that have it, which also colours a picture of the embeddings."""
    baselines: Annotated[Literal["auto", "on", "off"], BeforeValidator(_as_mode)] = "auto"
    """Also measure what the frozen encoders give without training: logistic regression, linear projections, the
    caption of the nearest image. `auto`: where their features are stored or cheap; `on`: whatever they cost."""


class TrackingSection(Section):
    """Settings of trackers that TrainingArguments has no field for; `training.report_to` chooses the trackers."""

    mlflow_uri: str = "sqlite:///mlflow.db"
    log_model: list[Literal["mlflow", "wandb"]] = ["mlflow"]
    """Trackers that get the trained model as an artifact; in MLflow, `mlflow.pyfunc.load_model` predicts with it."""


CacheMode = Literal["auto", "on", "off"]


class CacheSection(Section):
    mode: CacheMode = "auto"
    """`auto`: where it saves time, as `mmhf plan` shows; `on`: wherever it is possible."""
    folder: str | None = None
    """Absent: `$MMHF_FEATURES`, else `mmhf/features` in the cache folder of Hugging Face (`$HF_HOME`). Several runs
    may share it."""
    max_bytes: PositiveInt | None = None
    """Limit for all features in the folder; the least recently used are removed first. Absent: as much as the disk
    has."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """How features are stored; absent: as the encoder gives them, so that nothing is lost."""
    views: PositiveInt | None = None
    """With random augmentation: store this many augmented views of each image, drawn once; each epoch sees one.
    Absent: flips are cached both ways, and images that change in another way are not cached."""


CacheChoice = CacheMode | CacheSection
"""Values of `cache:`; `cache: on` is short for `cache: {mode: on}`."""


def cache_section(choice: CacheChoice) -> CacheSection:
    """The section that a recipe's `cache:` stands for."""
    return choice if isinstance(choice, CacheSection) else CacheSection(mode=choice)


class TeacherSection(Section):
    """A released model whose answers are learnt beside the labels, or the pairs, of the data."""

    model: str
    """A release, `REPO@vX.Y`, or a run folder, of the same task; of a classifier, with the same classes."""
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Its share of the loss; that of the model's own loss is what is left of 1."""
    temperature: PositiveFloat | None = None
    """What the logits of classes, or the similarities of a dual encoder, are divided by on both sides. Absent: 2 for
    classes, 1 for similarities and for several labels a row."""


TeacherChoice = str | TeacherSection
"""Values of `teacher:`; `teacher: REPO@vX.Y` is short for `teacher: {model: REPO@vX.Y}`."""


def teacher_section(choice: TeacherChoice | None) -> TeacherSection | None:
    """The section that a recipe's `teacher:` stands for; None where there is no teacher."""
    return TeacherSection(model=choice) if isinstance(choice, str) else choice


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
    "mae",
    "rmse",
)


def greater_is_better(metric: str) -> bool:
    """Whether a higher value of a metric is better.

    Args:
        metric (`str`): Its name; more may stand before it, behind `_`: `eval_loss`, `test_image_uniformity`.
    """
    return not f"_{metric}".endswith(tuple(f"_{name}" for name in _LOWER_IS_BETTER))
