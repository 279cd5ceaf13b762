"""The `data:` sections, one a source."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmhf.recipe.augment_sections import AugmentSection
from mmhf.recipe.cloud_section import CloudSection, DataPath
from mmhf.recipe.filter_sections import ConditionSection, FiltersSection
from mmhf.recipe.sections import Fraction, PositiveInt, Section, SplitName


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
    source: str
    image_size: PositiveInt = 224
    """Side of the square image that the model sees, in pixels."""
    resize: Literal["squash", "crop"] = "squash"
    """`squash` ignores the aspect ratio; `crop` resizes the shorter side and crops the centre."""
    mean_std: Literal["backbone", "computed"] = "backbone"
    """What pixels are normalised with, kept with the model's processor: the backbone's own mean and standard
    deviation, or those of the training images, `computed` in one pass before training (classifiers)."""
    max_length: PositiveInt = 128
    """Longest text in tokens; what is longer is cut at the end."""
    limit: PositiveInt | None = None
    """Keep this many rows of each split, drawn by `seed`; absent = all."""
    limit_seed: int = 42
    augment: AugmentSection | None = None
    on_bad_image: Literal["skip", "blank", "mask", "raise"] = "skip"
    """A missing or unreadable image: drop the row, use a white image, let the model go by the text alone (`mask`, for
    image-text-classification; see `model.modalities`), or stop."""
    on_empty_text: Literal["skip", "blank", "mask", "raise"] = "blank"
    """An empty text: drop the row, use the empty string, let the model go by the image alone (`mask`), or stop."""
    on_bad_row: Literal["skip", "raise"] = "raise"
    """A malformed row or a label outside the map: drop the row or stop."""


class FakedditDataSection(DataSectionBase):
    source: Literal["fakeddit"]
    path: DataPath
    """Folder with `multimodal_{train,validate,test_public}.tsv` and the images; a path or URL."""
    label: Literal["2_way_label", "3_way_label", "6_way_label"] = "2_way_label"
    text: Literal["clean_title", "title"] = "clean_title"
    image_dir: str | None = None
    """Folder of the images inside `path`; absent: `public_image_set` or `images`, whichever is there."""
    cloud: CloudSection = CloudSection()


_VERSION = "{version}"


class FilteredDataSection(DataSectionBase):
    """What tables have in common: a version in their paths, placeholders, filters, and how they are cut."""

    version: str | None = None
    """What stands for `{version}` in paths, so that changing the data set's version is changing one word."""
    missing: list[str] = []
    """Placeholders that are read as missing, in any case; `*` stands for anything (`No * information`)."""
    filters: FiltersSection = FiltersSection()
    labels: dict[str, str] | None = None
    """Label value in the table → label name, in the order of the class ids; absent: the sorted values themselves."""
    split: SplitSection = SplitSection()
    cloud: CloudSection = CloudSection()

    def versioned(self, path: str) -> str:
        """The path with the version in its place."""
        return path if self.version is None else path.replace(_VERSION, self.version)

    def _check_version(self, paths: list[str | None]) -> None:
        named = any(_VERSION in path for path in paths if path is not None)
        if named and self.version is None:
            raise ValueError(f"a path holds {_VERSION}, but `version` is absent")
        if self.version is not None and not named:
            raise ValueError(f"version = {self.version}, but no path holds {_VERSION}")


class TableDataSection(FilteredDataSection):
    source: Literal["table"]
    path: DataPath | None = None
    """One CSV, TSV, JSONL or parquet file that `split` cuts, or that `split_column` has cut already; a path or URL."""
    train: DataPath | None = None
    validation: DataPath | None = None
    test: DataPath | None = None
    image_root: DataPath | None = None
    """Folder that image paths are relative to, as a path or URL; absent: the table's own folder."""
    columns: ColumnsSection = ColumnsSection()
    split_column: str | None = None
    """A column that says the split. In splits that are given, `split.group_by` is only checked."""

    @model_validator(mode="after")
    def _one_way_to_name_files(self) -> TableDataSection:
        separate = any((self.train, self.validation, self.test))
        if bool(self.path) == separate:
            raise ValueError("give either `path` (one file, which is then split) or `train`/`validation`/`test` files")
        if self.split_column is not None and separate:
            raise ValueError("`split_column` cuts the one file `path`, but separate files are given")
        if self.filters.has_text is not None and self.columns.text is None:
            raise ValueError("`filters.has_text` needs `columns.text`, which is null")
        self._check_version([self.path, self.train, self.validation, self.test, self.image_root])
        return self

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
    """`group` holds the patient or the lesion, where a data set tells."""


class ClinicalDataSection(FilteredDataSection):
    """Dermatology data sets as their authors publish them, joined into one table with the columns image, text, label,
    group, dataset, source, skin_type, sex and age."""

    source: Literal["clinical"]
    path: DataPath
    """Folder that holds the tables and images; a path or URL."""
    tables: Annotated[dict[ClinicalName, ClinicalTableSection], Field(min_length=1)]
    """Data set → where it is."""
    missing: list[str] = ["No * information", "unknown"]
    split: ClinicalSplitSection = ClinicalSplitSection()

    @model_validator(mode="after")
    def _has_version_in_path(self) -> ClinicalDataSection:
        self._check_version([self.path])
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
    path: DataPath
    """A folder, a zip or tar of one, or the URL of either (`https://`, `s3://`, `gs://`, ...)."""
    cloud: CloudSection = CloudSection()
    """For a folder behind a URL; an archive behind one is copied whole into the cache of `datasets`."""
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
    FakedditDataSection | TableDataSection | ClinicalDataSection | SampleDataSection | HubDataSection,
    Field(discriminator="source"),
]
"""Sources of images with texts."""
DataSection = Annotated[
    FakedditDataSection
    | TableDataSection
    | ClinicalDataSection
    | SampleDataSection
    | HubDataSection
    | ImageFolderDataSection,
    Field(discriminator="source"),
]
"""Sources of images."""
