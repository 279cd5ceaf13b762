"""The `data:` sections of rows with labels, one a source."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mmhf.recipe.augment_sections import AugmentSection
from mmhf.recipe.row_sections import ConditionSection, FiltersSection, FoldSection, SplitSection
from mmhf.recipe.sections import CloudSection, DataPath, PositiveInt, Section, SplitName
from mmhf.recipe.target_sections import MultiLabelSection, OrdinalSection, RegressionSection, TargetSection


class ColumnsSection(Section):
    """Names of the table's columns."""

    image: str = "image"
    text: str | None = "text"
    """Not read by tasks without text."""
    label: str = "label"
    id: str | None = None
    """Absent: the row number is the id."""


_LEAST_SIDE = 8


def _read_image_size(value: object) -> object:
    """YAML's list as the pair that it stands for; a square by its side."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return value[0] if value[0] == value[1] else tuple(value)
    if not isinstance(value, int):
        raise ValueError("must be the side of a square or [height, width]")
    return value


def _shows_something(size: int | tuple[int, int]) -> int | tuple[int, int]:
    if min(size if isinstance(size, tuple) else (size,)) < _LEAST_SIDE:
        raise ValueError(f"nothing can be seen in images of under {_LEAST_SIDE} px a side; usual are 96 to 384")
    return size


ImageSizeSetting = Annotated[
    PositiveInt | tuple[PositiveInt, PositiveInt], BeforeValidator(_read_image_size), AfterValidator(_shows_something)
]


class DataSectionBase(Section):
    has_texts: ClassVar[bool] = True
    """Whether there are texts, or captions, with the images."""

    source: str
    image_size: ImageSizeSetting = 224
    """Of the image that the model sees, in pixels: the side of a square, or `[height, width]`."""
    resize: Literal["squash", "crop", "naflex"] = "squash"
    """`squash` ignores the aspect ratio; `crop` resizes the shorter side and crops the centre, to a square alone.
    `naflex` keeps each image's proportions: it is scaled to as many patches as a square of side `image_size`, a
    multiple of the patch, has at most; for `timm/naflexvit_…` and SigLIP 2's image encoder."""
    mean_std: Literal["backbone", "computed"] = "backbone"
    """Mean and standard deviation that normalise pixels, saved with the processor: the backbone's own, or those of
    the training images, `computed` in one pass before training (classifiers only)."""
    max_length: PositiveInt = 128
    """Maximum length of a text in tokens; longer texts are truncated."""
    limit: PositiveInt | None = None
    """Keep this many rows of each split, drawn at random with `limit_seed`; absent = all."""
    limit_seed: int = 42
    missing: list[str] = []
    """Placeholders that are read as missing values, ignoring case; `*` matches anything (`No * information`)."""
    filters: FiltersSection = FiltersSection.model_construct()
    """Which rows are used; applied before splitting and before `limit`."""
    fold: FoldSection | None = None
    """Train on all folds but one, and validate on that; applied after `limit`, to the rows that can be used."""
    augment: AugmentSection | None = None
    on_bad_image: Literal["skip", "blank", "mask", "raise"] = "skip"
    """What to do about a missing or unreadable image: drop the row, use a white image, use the text alone (`mask`, for
    image-text-classification; see `model.modalities`), or stop."""
    on_empty_text: Literal["skip", "blank", "keep", "mask", "raise"] = "blank"
    """What to do about an empty text: drop the row, use the empty string and list the row as a bad one (`blank`), or
    stop. Where texts may be empty, `keep` uses the empty string and `mask` the image alone; both count such rows and
    list none."""
    on_bad_row: Literal["skip", "raise"] = "raise"
    """What to do about a malformed row or a label that is not in `labels`: drop the row or stop."""
    follow_links: bool = False
    """Follow symbolic links out of the data folder; the Hub's cache, DVC and git-annex consist of such links."""
    find_duplicates: Literal["near", "exact", "never"] = "never"
    """Look for duplicate images: `exact` compares file contents, `near` also the pictures themselves."""
    on_duplicate: Literal["keep", "skip_across_splits"] = "keep"
    """Training images that are also in validation or test: keep them, or leave them out of training."""
    exact: bool = True
    """false: large JPEG files are decoded at a half, a quarter or an eighth of their size, and `mmhf prepare` packs
    images at the size that is needed. Faster and smaller, with slightly other pixels."""
    prepared: str | None = None
    """A folder that `mmhf prepare` made of this data: rows and images come from there, and the source is only asked
    whether it has changed."""

    @model_validator(mode="after")
    def _crops_squares(self) -> DataSectionBase:
        if self.resize == "crop" and not isinstance(self.image_size, int):
            raise ValueError("resize = crop cuts out a square; with a height and a width as image_size use squash")
        if self.resize == "naflex" and not isinstance(self.image_size, int):
            raise ValueError("resize = naflex keeps each image's own shape; as image_size give the side of a square")
        return self

    @model_validator(mode="after")
    def _looks_for_what_it_skips(self) -> DataSectionBase:
        if self.on_duplicate != "keep" and self.find_duplicates == "never":
            raise ValueError(f"on_duplicate = {self.on_duplicate} needs find_duplicates: near or exact")
        return self

    @model_validator(mode="after")
    def _has_rows_to_fold(self) -> DataSectionBase:
        if self.fold is not None and self.is_stream():
            raise ValueError("fold: a stream is not cut into folds, because its rows are not read beforehand")
        return self

    @property
    def target(self) -> TargetSection | None:
        """How what is learnt of a row is read; None: it is one class."""
        return None

    @property
    def label_column(self) -> str:
        """The column of the label, or what stands for one."""
        return "label"

    def of_one_source(self) -> list[DataSectionBase]:
        """The sections of single data sets: this one, or those that it joins."""
        return [self]

    def is_on_hub(self) -> bool:
        """Whether reading the data needs the Hub."""
        return False

    def is_stream(self) -> bool:
        """Whether the training split is read while training goes on."""
        return bool(self.model_dump(include={"streaming"}).get("streaming"))

    def may_have_empty_texts(self) -> bool:
        """Whether a row without a text is as good as any other."""
        return self.on_empty_text in ("keep", "mask")


class TargetDataSection(DataSectionBase):
    """Sources that may have something else to learn than one class a row."""

    multi_label: MultiLabelSection | None = None
    """Any number of labels a row (docs/multi_label.md)."""
    regression: RegressionSection | None = None
    """A number a row, or several (docs/regression.md)."""
    ordinal: OrdinalSection | None = None
    """One of several classes that have an order (docs/regression.md). Without any of the three: one class a row."""

    @model_validator(mode="after")
    def _learns_one_kind(self) -> TargetDataSection:
        given = [name for name in ("multi_label", "regression", "ordinal") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a model learns one of {' and '.join(given)}; remove the others")
        return self

    @property
    def target(self) -> TargetSection | None:
        return self.multi_label or self.regression or self.ordinal


class FakedditDataSection(DataSectionBase):
    source: Literal["fakeddit"]
    path: DataPath
    """Folder with `multimodal_{train,validate,test_public}.tsv` and the images; a path or URL."""
    label: Literal["2_way_label", "3_way_label", "6_way_label"] = "2_way_label"
    text: Literal["clean_title", "title"] = "clean_title"
    image_dir: str | None = None
    """Folder of the images inside `path`; absent: `public_image_set` or `images`, whichever is there."""
    cloud: CloudSection = CloudSection.model_construct()


_VERSION = "{version}"


class FilteredDataSection(DataSectionBase):
    """What tables have in common: a version in their paths, names of labels, and how they are split."""

    version: str | None = None
    """Replaces `{version}` in paths, so that another version of the data is a change of one word."""
    labels: dict[str, str] | None = None
    """Label value in the table → label name, in the order of the class ids; absent: the sorted values themselves."""
    split: SplitSection = SplitSection.model_construct()
    cloud: CloudSection = CloudSection.model_construct()

    def versioned(self, path: str) -> str:
        """The path with the version filled in."""
        return path if self.version is None else path.replace(_VERSION, self.version)

    def _check_version(self, paths: list[str | None]) -> None:
        named = any(_VERSION in path for path in paths if path is not None)
        if named and self.version is None:
            raise ValueError(f"a path holds {_VERSION}, but `version` is absent")
        if self.version is not None and not named:
            raise ValueError(f"version = {self.version}, but no path holds {_VERSION}")


def check_image_roots(roots: object, **files: str | None) -> None:
    """Raise `ValueError` for an image root of a split that has no file of its own.

    Args:
        roots: `image_root` of a section.
        files (`str`, *optional*): Split → its file.
    """
    for split in roots if isinstance(roots, dict) else ():
        if files[split] is None:
            raise ValueError(f"image_root.{split}: there is no file `{split}`; give one, or one root for all")


class TableDataSection(FilteredDataSection, TargetDataSection):
    source: Literal["table"]
    path: DataPath | None = None
    """One CSV, TSV, JSONL or parquet file, split by `split` or by its column `split_column`; a path or URL."""
    train: DataPath | None = None
    validation: DataPath | None = None
    test: DataPath | None = None
    image_root: DataPath | dict[SplitName, DataPath] | None = None
    """Folder that image paths are relative to, as a path or URL, one for all or one by split (`{train: …}`); absent:
    the table's own folder."""
    columns: ColumnsSection = ColumnsSection.model_construct()
    split_column: str | None = None
    """A column with the split of each row. Given splits are only checked for `split.group_by`."""

    @model_validator(mode="after")
    def _one_way_to_name_files(self) -> TableDataSection:
        separate = any((self.train, self.validation, self.test))
        if bool(self.path) == separate:
            raise ValueError("give either `path` (one file, which is then split) or `train`/`validation`/`test` files")
        if self.split_column is not None and separate:
            raise ValueError("`split_column` cuts the one file `path`, but separate files are given")
        if self.filters.has_text is not None and self.columns.text is None:
            raise ValueError("`filters.has_text` needs `columns.text`, which is null")
        check_image_roots(self.image_root, train=self.train, validation=self.validation, test=self.test)
        roots = self.image_root.values() if isinstance(self.image_root, dict) else [self.image_root]
        self._check_version([self.path, self.train, self.validation, self.test, *roots])
        return self

    @property
    def label_column(self) -> str:
        return self.columns.label

    def without_text(self) -> TableDataSection:
        """The same rows for a task that reads no texts: `filters.has_text` becomes a condition on the column."""
        filters, text = self.filters, self.columns.text
        if filters.has_text is not None and text is not None:
            condition = ConditionSection(exclude=[None]) if filters.has_text else [None]
            filters = filters.model_copy(update={"has_text": None, "where": {**filters.where, text: condition}})
        columns = self.columns.model_copy(update={"text": None})
        return self.model_copy(update={"columns": columns, "filters": filters})


ClinicalName = Literal["fitzpatrick17k", "ddi", "isic2020", "ham10000", "derm1m"]


class ClinicalTableSection(Section):
    table: str
    """The data set's own CSV, below `data.path`."""
    images: str
    """Folder of its images, below `data.path`."""
    label: str | None = None
    """The column of the label; absent: the finest (`label`, `disease`, `diagnosis`, `dx`, `disease_label`)."""


class ClinicalSplitSection(SplitSection):
    group_by: str | None = "group"
    """`group` holds the patient or the lesion, where the data set has it."""


class ClinicalDataSection(FilteredDataSection):
    """Dermatology data sets as their authors publish them, joined into one table with the columns image, text, label,
    group, dataset, source, skin_type, sex, age and site."""

    source: Literal["clinical"]
    path: DataPath
    """Folder that holds the tables and images; a path or URL."""
    tables: Annotated[dict[ClinicalName, ClinicalTableSection], Field(min_length=1)]
    """Data set → where it is."""
    missing: list[str] = ["No * information", "unknown"]
    split: ClinicalSplitSection = ClinicalSplitSection.model_construct()

    @model_validator(mode="after")
    def _has_version_in_path(self) -> ClinicalDataSection:
        self._check_version([self.path])
        return self


SampleVendor = Literal["noto", "fluent"]
"""Whose the embedded drawings are."""


class SampleDataSection(TargetDataSection):
    """The embedded drawings: Noto's to train on, Fluent's to evaluate."""

    source: Literal["sample"]
    vendor: SampleVendor | None = None
    """The drawings of one artist alone; absent: of both."""
    split: SplitSection | None = None
    """How the drawings are split anew, with equal shares of their groups; absent: by artist."""
    image_size: ImageSizeSetting = 96
    max_length: PositiveInt = 32

    @model_validator(mode="after")
    def _has_no_groups_to_keep_together(self) -> SampleDataSection:
        if self.split is not None and self.split.group_by is not None:
            raise ValueError("split.group_by names a column, and the embedded drawings are cut without one; remove it")
        return self

    @property
    def label_column(self) -> str:
        return "words"


class HubDataSection(TargetDataSection):
    source: Literal["hub"]
    path: str
    """A data set repository, or anything else that `datasets.load_dataset` takes."""
    name: str | None = None
    """Configuration of the data set."""
    revision: str | None = None
    streaming: bool = False
    columns: ColumnsSection = ColumnsSection.model_construct()
    labels: dict[str, str] | None = None
    splits: dict[SplitName, str] | None = None
    """Our split → the data set's split; absent: the splits of the same names."""
    split: SplitSection | None = None
    """How to split the data set's `train` split."""

    @property
    def label_column(self) -> str:
        return self.columns.label

    def is_on_hub(self) -> bool:
        return True


class ImageFolderDataSection(DataSectionBase):
    """Images in a folder for each class, or in `train`, `validation` and `test` folders of such folders."""

    has_texts: ClassVar[bool] = False

    source: Literal["image_folder"]
    path: DataPath
    """A folder, a zip or tar of one, or the URL of either (`https://`, `s3://`, `gs://`, ...)."""
    cloud: CloudSection = CloudSection.model_construct()
    """For a folder behind a URL; an archive behind one is copied whole into the cache of `datasets`."""
    folder: str | None = None
    """Where inside `path` the class or split folders are, such as `raw/color`."""
    splits: dict[SplitName, str] | None = None
    """Our split → its folder; absent: folders named `train`, `val`, `valid`, `validation`, `test` and the like."""
    split: SplitSection | None = None
    """How to make the splits that have no folder; absent: split folders are used as they are, and a tree without any
    is split by the defaults."""
    labels: dict[str, str] | None = None
    """Class folder → label name, in the order of the class ids; absent: the folders' own names, sorted."""
    find_duplicates: Literal["near", "exact", "never"] = "near"

    @model_validator(mode="after")
    def _can_be_cut(self) -> ImageFolderDataSection:
        if self.split is not None and self.split.group_by is not None:
            raise ValueError("split.group_by names a column, and image folders have none")
        return self
