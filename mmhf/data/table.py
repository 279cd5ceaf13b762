"""What every source gives: the rows of a split as the user wrote them, before any is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import datasets

from mmhf.data.images import DataFolder, find_image_problem

IMAGE_FEATURE = {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}
_FEATURES: dict[str, Any] = {
    "row": datasets.Value("int64"),
    "id": datasets.Value("string"),
    "image": IMAGE_FEATURE,
    "text": datasets.Value("string"),
    "label": datasets.Value("int64"),
    "captions": datasets.List(datasets.Value("string")),
}
ROW_FEATURES = datasets.Features({name: _FEATURES[name] for name in ("row", "id", "image", "text", "label")})
"""The columns of labelled data: row number in the source (from 1), its name, image, text and class id."""
CAPTION_FEATURES = datasets.Features({name: _FEATURES[name] for name in ("row", "id", "image", "captions")})
"""The columns of captioned data: row number of the image's first row in the source, its name, image and captions."""

NO_IMAGE: dict[str, Any] = {"path": None, "bytes": None}
SPLITS = ("train", "validation", "test")


class ImageProblem(NamedTuple):
    """Why an image cannot be used, and whether the image or the row that names it is at fault."""

    reason: str
    kind: Literal["image", "row"] = "image"


class ImageColumn(Protocol):
    """The images of a split, wherever they are."""

    def problems(self, positions: Sequence[int], *, read: bool) -> Iterable[ImageProblem | None]:
        """Say what is wrong with each of these images, in order; `read` looks into the files too."""
        ...

    def to_dataset(
        self, positions: Sequence[int], blank: set[int], columns: Mapping[str, list[Any]]
    ) -> datasets.Dataset:
        """Make the table of these rows; `columns` holds the other columns, one value a position."""
        ...


@dataclass(kw_only=True)
class SourceRows:
    """The images of one split; positions count from 0, row numbers are the user's."""

    origin: str
    """The file or data set, for messages."""
    rows: list[int]
    ids: list[str]
    images: ImageColumn
    malformed: dict[int, str] = field(default_factory=dict)
    """Position → why the row cannot be read."""
    without_image: dict[int, str] = field(default_factory=dict)
    """Position → why the row has no image."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(kw_only=True)
class LabelledRows(SourceRows):
    """Images with a label each, and a text where the task has one."""

    texts: list[str | None]
    labels: list[str | None]
    extras: dict[str, list[str | None]] = field(default_factory=dict)
    """Columns that are kept beside those that models see; a missing value is None."""


class FilterStep(NamedTuple):
    """A filter of rows, and how many are left behind it."""

    filter: str
    rows: int


class Caption(NamedTuple):
    """A caption as the user wrote it."""

    text: str | None
    row: int
    """Row number of the caption, which an image with several rows does not tell."""
    note: str | None = None
    """What had to be repaired to read it."""


@dataclass(kw_only=True)
class CaptionedRows(SourceRows):
    """Images with all their captions each."""

    captions: list[list[Caption]]


CaptionedSource = dict[str, CaptionedRows]
"""The splits of a source of images with captions."""


@dataclass
class SourceData:
    """All splits of a source and what its label values are called."""

    splits: dict[str, LabelledRows]
    label_of: dict[str, str]
    """Label value → label name, in the order of the class ids."""
    filter_steps: list[FilterStep] = field(default_factory=list)
    """The rows before and behind each filter, over all splits; empty when nothing was filtered."""


def extra_column(name: str) -> str:
    """What a column of the user's is called in loaded data, so that it can be called `text` or `row`."""
    return f"extra.{name}"


def column_features(names: Iterable[str]) -> datasets.Features:
    """The features of loaded data's columns, in their usual order; columns of the user's are strings."""
    wanted = dict.fromkeys(names)
    known = {name: feature for name, feature in _FEATURES.items() if name in wanted}
    return datasets.Features({**known, **{name: datasets.Value("string") for name in wanted if name not in _FEATURES}})


def image_table(
    images: list[dict[str, Any]], columns: Mapping[str, list[Any]], image_feature: Any = None
) -> datasets.Dataset:
    """Make the table of rows.

    Args:
        images (`list[dict]`):
            `path` and `bytes` of each row's image.
        columns (`Mapping[str, list]`):
            The other columns.
        image_feature (`Any`, *optional*):
            The type of `image` that `datasets` reads it by; absent: as it is.
    """
    values: dict[str, list[Any]] = {"image": images, **columns}
    features = column_features(values)
    if image_feature is not None:
        features["image"] = image_feature
    return datasets.Dataset.from_dict({name: values[name] for name in features}, features=features)


class ImageFiles:
    """Images named by path below one folder.

    Args:
        folder (`str` or `Path`):
            The folder that no path may leave.
        names (`Sequence[str | None]`):
            A relative path for each row.
    """

    def __init__(self, folder: str | Path, names: Sequence[str | None]) -> None:
        self.folder = DataFolder(folder)
        self.names = names

    def problems(self, positions: Sequence[int], *, read: bool) -> Iterable[ImageProblem | None]:
        """See `ImageColumn`."""
        return [self._problem(position, read) for position in positions]

    def _problem(self, position: int, read: bool) -> ImageProblem | None:
        name = self.names[position]
        if not name:
            return ImageProblem("no image is named")
        if reason := self._find_escape(name):
            return ImageProblem(reason, "row")
        reason = find_image_problem(self.folder.path_of(name)) if read else None
        return ImageProblem(f"{reason}: {name}") if reason else None

    def _find_escape(self, name: str) -> str | None:
        return self.folder.find_escape(name)

    def to_dataset(
        self, positions: Sequence[int], blank: set[int], columns: Mapping[str, list[Any]]
    ) -> datasets.Dataset:
        """See `ImageColumn`."""
        images = [
            NO_IMAGE if position in blank else {"path": self.folder.path_of(self.names[position] or ""), "bytes": None}
            for position in positions
        ]
        return image_table(images, columns)


class EmbeddedImages:
    """Images whose encoded bytes are in the table.

    Args:
        contents (`Sequence[bytes | None]`):
            The content of an image file for each row.
    """

    def __init__(self, contents: Sequence[bytes | None]) -> None:
        self.contents = contents

    def problems(self, positions: Sequence[int], *, read: bool) -> Iterable[ImageProblem | None]:
        """See `ImageColumn`."""
        return [self._problem(position, read) for position in positions]

    def _problem(self, position: int, read: bool) -> ImageProblem | None:
        content = self.contents[position]
        reason = "no image" if content is None else find_image_problem(content) if read else None
        return ImageProblem(reason) if reason else None

    def to_dataset(
        self, positions: Sequence[int], blank: set[int], columns: Mapping[str, list[Any]]
    ) -> datasets.Dataset:
        """See `ImageColumn`."""
        images = [
            NO_IMAGE if position in blank else {"path": None, "bytes": self.contents[position]}
            for position in positions
        ]
        return image_table(images, columns)
