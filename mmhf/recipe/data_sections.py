"""The `data:` sections, one a source."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmhf.recipe.augment_sections import AugmentSection
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
