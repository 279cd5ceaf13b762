"""The `data:` sections of images with captions, one a source."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from mmhf.recipe.data_sections import DataSectionBase, ImageSizeSetting, SampleVendor, check_image_roots
from mmhf.recipe.sections import CloudSection, DataPath, Fraction, PositiveInt, Section, SplitName


class ImageSplitSection(Section):
    """How images are split; the captions of an image stay together."""

    validation: Fraction = 0.1
    test: Fraction = 0.1
    seed: int = 42

    @model_validator(mode="after")
    def _leaves_images_to_train_on(self) -> ImageSplitSection:
        if self.validation + self.test >= 1.0:
            raise ValueError(f"validation + test = {self.validation + self.test:g} leaves no images to train on")
        return self


class CaptionColumnsSection(Section):
    """Names of the columns of images and captions."""

    image: str | None = None
    """Path or content of the image; absent: `file_name` in a folder's metadata, `image` elsewhere."""
    captions: str | list[str] = "caption"
    """One column, of texts or of lists of texts, or several. The captions of rows with the same image are joined."""
    id: str | None = None
    """Absent: the path of the image, or its number, is the id."""

    def caption_columns(self) -> list[str]:
        """The columns of captions."""
        return [self.captions] if isinstance(self.captions, str) else self.captions


class CaptionDataSectionBase(DataSectionBase):
    captions: Literal["sample", "all"] = "sample"
    """Train on one caption per image, drawn again each epoch, or on all of them in every epoch."""
    on_empty_text: Literal["skip", "raise"] = "skip"
    """What to do about an empty caption, an image without one, or a row that lacks what its prompt needs: leave it
    out, or stop."""
    find_duplicates: Literal["near", "exact", "never"] = "near"


class CaptionSampleSection(CaptionDataSectionBase):
    """The embedded drawings: Noto's to train on, Fluent's to evaluate."""

    source: Literal["sample"]
    vendor: SampleVendor | None = None
    """The drawings of one artist alone; absent: of both."""
    split: ImageSplitSection | None = None
    """How the drawings are split anew; absent: by artist."""
    image_size: ImageSizeSetting = 96
    max_length: PositiveInt = 32
    keywords: bool = False
    """Add another caption to each drawing: its name followed by the first keywords that are not part of it."""
    questions: bool = False
    """For captioners: in place of its names, four questions about each drawing, in a column `question`, with ten
    answers each: what comes to mind (its keywords), which group it is in, and whether it is in its own group and in
    another. The column `kind` says `keyword`, `group` or `yes or no`."""
    find_duplicates: Literal["near", "exact", "never"] = "never"
    """Off, because some drawings are nearly the same, such as Fluent's cat face and grinning cat."""

    @model_validator(mode="after")
    def _has_captions_or_answers(self) -> CaptionSampleSection:
        if self.keywords and self.questions:
            raise ValueError("keywords adds a caption, and with `questions` there are answers instead; remove one")
        return self


class Flickr30kSection(CaptionDataSectionBase):
    """Flickr30k in any of the formats that it is distributed in."""

    source: Literal["flickr30k"]
    path: DataPath | None = None
    """A folder with the images and one of the caption files, as a path or URL; absent: `repo`, fetched from the
    Hub."""
    format: Literal["karpathy", "token", "csv", "parquet"] | None = None
    """Karpathy's `dataset_flickr30k.json`, the original `results_20130124.token`, Kaggle's `results.csv`, or the Hub's
    parquet files; absent: the first of these that is in `path`."""
    repo: str = "nlphuji/flickr30k"
    """This data set or `lmms-lab/flickr30k`, or a copy of either."""
    revision: str | None = None
    """Of `repo`; absent: the revision that holds its parquet files."""
    split: ImageSplitSection | None = None
    """How to split all images; absent: Karpathy's splits where they are known, else a tenth each for validation and
    test."""
    cloud: CloudSection = CloudSection.model_construct()

    def is_on_hub(self) -> bool:
        return self.path is None


class CaptionTableSection(CaptionDataSectionBase):
    """CSV, TSV, JSONL or parquet files, or folders with a `metadata.jsonl` or `metadata.csv`."""

    source: Literal["table"]
    path: DataPath | None = None
    """One file or folder, split by `split` or by `split_column`, or a folder with one folder per split; a path or
    URL."""
    train: DataPath | None = None
    validation: DataPath | None = None
    test: DataPath | None = None
    image_root: DataPath | dict[SplitName, DataPath] | None = None
    """Folder that image paths are relative to, as a path or URL, one for all or one by split (`{train: …}`); absent:
    the table's own folder."""
    columns: CaptionColumnsSection = CaptionColumnsSection.model_construct()
    split: ImageSplitSection = ImageSplitSection.model_construct()
    split_column: str | None = None
    cloud: CloudSection = CloudSection.model_construct()

    @model_validator(mode="after")
    def _one_way_to_name_files(self) -> CaptionTableSection:
        separate = any((self.train, self.validation, self.test))
        if bool(self.path) == separate:
            raise ValueError("give either `path` (one table, which is then split) or `train`/`validation`/`test`")
        if self.split_column is not None and separate:
            raise ValueError("`split_column` cuts the one table `path`, but separate ones are given")
        check_image_roots(self.image_root, train=self.train, validation=self.validation, test=self.test)
        return self


class StreamSection(Section):
    """How a stream is read."""

    shuffle_buffer: PositiveInt = 1000
    """Size of each reader's shuffle buffer, in training samples; the order of files is also shuffled."""
    seed: int = 42
    epoch_samples: PositiveInt | None = None
    """Samples of the training split in an epoch, over all processes; absent: all, counted once. When it is given,
    nothing is counted: samples of files of unequal size are then not seen equally often."""
    readers: PositiveInt | None = None
    """How many readers share out the stream; absent: one for each worker of each process, so that the order of
    samples depends on their number."""
    on_bad_shard: Literal["skip", "raise"] = "skip"
    """What to do about a missing or damaged file: read what can be read and go on with the next one, or stop."""


class CaptionHubSection(CaptionDataSectionBase):
    """A data set of the Hub, or anything else that `datasets.load_dataset` takes."""

    source: Literal["hub"]
    path: str
    name: str | None = None
    """Configuration of the data set."""
    revision: str | None = None
    streaming: bool = False
    stream: StreamSection = StreamSection.model_construct()
    columns: CaptionColumnsSection = CaptionColumnsSection.model_construct()
    splits: dict[SplitName, str] | None = None
    """Our split → the data set's split; absent: the splits of the same names."""
    split: ImageSplitSection | None = None
    """How to split the data set's `train` split."""
    split_column: str | None = None
    """A column with the split of each row, for a data set that has a single split."""

    @model_validator(mode="after")
    def _one_way_to_split(self) -> CaptionHubSection:
        if self.split is not None and self.split_column is not None:
            raise ValueError("give either `split` (fractions) or `split_column` (a column), not both")
        if self.streaming and (self.split is not None or self.split_column is not None):
            raise ValueError("a stream is not cut into splits; name those that it has in `splits`")
        return self

    def is_on_hub(self) -> bool:
        return True


class WebDatasetSection(CaptionDataSectionBase):
    """Tar files whose members come in groups of one name: `000.jpg`, `000.txt`, `000.json`; always streamed."""

    source: Literal["webdataset"]
    train: DataPath | list[DataPath]
    """Tars as paths or URLs (`https://`, `s3://`, ...), with `{000..099}` and, where they can be listed, `*`."""
    validation: DataPath | list[DataPath] | None = None
    test: DataPath | list[DataPath] | None = None
    image: list[str] = ["jpg", "jpeg", "png", "webp"]
    """Endings of image members; the first one present is used."""
    caption: str = "txt"
    """Ending of the member with the caption; `json:KEY` reads a text or a list of texts from a JSON member."""
    stream: StreamSection = StreamSection.model_construct()

    def is_stream(self) -> bool:
        return True
