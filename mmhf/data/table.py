"""The one table that every source gives: a row is a sample, from its file to the batch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmhf.data.bad_examples import BadExample
from mmhf.data.columns import IMAGE_TYPE
from mmhf.data.images import DataFolder, ImageFault, NamedImages, cut, find_image_problem
from mmhf.data.seen_files import WholeImages, states_of
from mmhf.files import whole_file

if TYPE_CHECKING:
    from mmhf.recipe.caption_data_sections import ImageSplitSection
    from mmhf.recipe.row_sections import SplitSection

SPLITS = ("train", "validation", "test")
IMAGE_FEATURE = {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}
NO_IMAGE: dict[str, Any] = {"path": None, "bytes": None}
ROW_FEATURES = datasets.Features(
    {
        "row": datasets.Value("int64"),
        "id": datasets.Value("string"),
        "image": IMAGE_FEATURE,
        "text": datasets.Value("string"),
        "label": datasets.Value("int64"),
    }
)
"""The columns of labelled data: row number in the source (from 1), its name, image, text and class id."""
CAPTION_FEATURES = datasets.Features(
    {
        **{name: ROW_FEATURES[name] for name in ("row", "id", "image")},
        "captions": datasets.List(datasets.Value("string")),
    }
)
"""The columns of captioned data: row number of the image's first row in the source, its name, image and captions."""

GROUP_COLUMN = "group"
"""Where loaded rows have what no fold separates, until they are cut into folds."""
DIGEST_COLUMN = "digest"
"""Where rows have it: the digest of their image's content, so that the image need not be read for it."""
CAPTIONS_TYPE = pa.list_(pa.string())
NOTES_TYPE = pa.list_(pa.struct({"row": pa.int64(), "note": pa.string()}))
_EXTRA = "extra."
_BASE64 = re.compile(r"data:image/|[A-Za-z0-9+/\r\n]{256,}={0,2}\s*$")
_MAPPED_ABOVE = 16 << 20
"""A larger table is kept in a file that all processes map; a smaller one costs less in memory."""


class FilterStep(NamedTuple):
    """A filter, and how many rows it left."""

    filter: str
    rows: int


@dataclass(frozen=True)
class Reading:
    """What is read of a source beside row number, id, image and split."""

    label: bool = True
    """The class label; otherwise the captions."""
    text: bool = False
    extra_columns: tuple[str, ...] = ()
    """Columns of the user's own that are kept, each under the name that `extra_column` gives it. Captions of one image
    are joined only where it has the same values in them."""
    required_columns: tuple[str, ...] = ()
    """Those of them that a row with captions cannot be used without."""
    splits: frozenset[str] | None = None
    """The splits that are wanted; a source may leave others unread. Absent: all."""

    def wants(self, split: str) -> bool:
        """Whether a split is wanted."""
        return self.splits is None or split in self.splits


class Images(Protocol):
    """Where the images are that a source's column `image` names or holds."""

    @property
    def feature(self) -> Any:
        """The type of the column by which `datasets` reads it."""
        ...

    def find_faults(self, images: Sequence[Mapping[str, Any] | None], *, read: bool) -> list[ImageFault | None]:
        """Say what is wrong with each image; `read` looks into the files, too."""
        ...

    def keep_findings(self) -> None:
        """Remember which files are whole, so that the next start need not open them."""
        ...

    def locate(self, images: pa.StructArray) -> pa.StructArray:
        """The images as they are read later: names become full paths."""
        ...


class EmbeddedImages:
    """Images in the table itself, or at paths that `datasets` has made.

    Args:
        feature (`Any`, *optional*):
            The type of the column.
    """

    def __init__(self, feature: Any = None) -> None:
        self.feature = IMAGE_FEATURE if feature is None else feature

    def find_faults(self, images: Sequence[Mapping[str, Any] | None], *, read: bool) -> list[ImageFault | None]:
        """See `Images`."""
        faults: list[ImageFault | None] = []
        for image in images:
            content = None if image is None else image["path"] if image["bytes"] is None else image["bytes"]
            reason = "no image" if content is None else find_image_problem(content) if read else None
            faults.append(ImageFault(reason) if reason else None)
        return faults

    def keep_findings(self) -> None:
        """See `Images`."""

    def locate(self, images: pa.StructArray) -> pa.StructArray:
        """See `Images`."""
        return images


class ImageFiles(NamedImages):
    """Images that a table names by their paths below a folder, or holds.

    Args:
        folder (`str` or `Path`):
            The folder that no path may leave.
        listed (`bool`, defaults to `False`):
            The names come from a listing: they may be anything, but links must not lead out.
        follow_links (`bool`, defaults to `False`):
            Links may lead out of the folder.
    """

    feature: Any = IMAGE_FEATURE

    def __init__(self, folder: str | Path, *, listed: bool = False, follow_links: bool = False) -> None:
        self.folder = DataFolder(folder, follow_links=follow_links)
        self.listed = listed
        self._whole = WholeImages()

    def find_faults(self, images: Sequence[Mapping[str, Any] | None], *, read: bool) -> list[ImageFault | None]:
        """See `Images`; files that were found whole before, and have not changed, are not opened."""
        if not read:
            return super().find_faults(images, read=False)
        names = [None if image is None or image["bytes"] is not None else image["path"] for image in images]
        states = states_of([name and self.folder.path_of(self._on_disk(name)) for name in names])
        known = self._whole.know(states)
        faults = [self.find_fault(image, read=not is_known) for image, is_known in zip(images, known, strict=True)]
        self._whole.add(states[~known & np.array([fault is None for fault in faults], bool)])
        return faults

    def keep_findings(self) -> None:
        """See `Images`."""
        self._whole.keep()

    def fault_of(self, name: str, *, read: bool) -> ImageFault | None:
        """See `NamedImages`."""
        if not self.listed and _BASE64.match(name):
            return ImageFault("the image is base64 text; write it as bytes into a parquet file, or into files", "row")
        name = self._on_disk(name)
        if reason := self.folder.find_link_out(name) if self.listed else self.folder.find_escape(name):
            return ImageFault(reason, "row")
        reason = find_image_problem(self.folder.path_of(name)) if read else None
        return ImageFault(f"{reason}: {cut(name)}") if reason else None

    def _on_disk(self, name: str) -> str:
        return name if self.listed else self.folder.find_name(name)

    def locate(self, images: pa.StructArray) -> pa.StructArray:
        """See `Images`."""
        path, content = images.field("path"), images.field("bytes")
        odd = pc.match_substring_regex(path, r"^/|\\|[^\x00-\x7f]")
        if not self.listed and pc.any(odd).as_py():
            names = [name and self.folder.find_name(name) for name in path.to_pylist()]
            path = pa.array(names, pa.string())
        full = pc.binary_join_element_wise(self.folder.path.rstrip("/"), path, "/")
        return pa.StructArray.from_arrays(
            [pc.if_else(pc.is_null(content), full, pa.scalar(None, pa.string())), content], fields=list(IMAGE_TYPE)
        )


class Part(NamedTuple):
    """A file or data set that rows come from."""

    origin: str
    """Its name, for messages."""
    images: Images


class Span(NamedTuple):
    """Rows that follow each other and are cut into splits by themselves."""

    start: int
    stop: int
    cut: SplitSection | ImageSplitSection | None
    """How those without a split are cut."""


@dataclass
class SourceTable:
    """What a source gives.

    Attributes:
        rows (`datasets.Dataset`):
            Memory-mapped when it is large, with the columns

            - `row`: the number that a user looks the row up by, from 1 in its own file or split; an image that several
              rows name has that of the first;
            - `id`, `image` (a struct of `path` and `bytes`);
            - `label` (the value or name in the source) and `text`, or `captions` with, where rows were joined,
              `caption_rows`, the row of each;
            - `split`: train, validation, test, or null for a row that is yet to be cut;
            - `fault`: why the row cannot be used, else null;

            and where the source has them `image_group` (equal in rows of one image, which no cut separates),
            `image_fault` (why the row has no image), `notes` (what had to be repaired,
            and in which row), and `extra.NAME` for columns that filters, cuts and tasks read.
        parts (`dict[str | None, Part]`):
            Split → what its rows come from; None stands for all that are not named.
        label_of (`dict[str, str]`, *optional*):
            Label value → label name, in the order of the class ids; absent: the sorted values.
        cut (`SplitSection` or `ImageSplitSection`, *optional*):
            How the rows without a split are cut.
        used (`NDArray`, *optional*):
            Positions of the rows that count; absent: all. Others hold further captions of another row's image, or
            could not be read.
        streams (`dict[str, Callable]`):
            Splits that are streamed and have no rows here: what opens them, given label value → class id.
        bad_examples (`list[BadExample]`):
            What was found while reading and is in no row.
        cut_apart (`Sequence[Span]`):
            In place of `cut`, the spans of rows that are each cut by themselves; they cover all rows.
    """

    rows: datasets.Dataset
    parts: dict[str | None, Part]
    label_of: dict[str, str] | None = None
    cut: SplitSection | ImageSplitSection | None = None
    used: NDArray[np.int64] | None = None
    streams: dict[str, Callable[[dict[str, int]], Any]] = field(default_factory=dict)
    bad_examples: list[BadExample] = field(default_factory=list)
    cut_apart: Sequence[Span] = ()

    @property
    def is_cut(self) -> bool:
        """Whether rows are cut into splits, and not all splits given."""
        return self.cut is not None or any(span.cut is not None for span in self.cut_apart)

    def part(self, split: str) -> Part:
        """What the rows of a split come from."""
        return self.parts[split] if split in self.parts else self.parts[None]

    def origin(self) -> str:
        """All files, for messages."""
        return ", ".join(dict.fromkeys(part.origin for part in self.parts.values()))

    def column(self, name: str) -> pa.ChunkedArray:
        """A column as Arrow has it."""
        return self.rows.data.column(name)


def extra_column(name: str) -> str:
    """What a column of the user's is called in loaded data, so that it can be called `text` or `row`."""
    return f"{_EXTRA}{name}"


def is_extra_column(name: str) -> bool:
    """Whether a column of loaded data is one of the user's."""
    return name.startswith(_EXTRA)


def make_rows(columns: Mapping[str, Any], image_feature: Any = None) -> datasets.Dataset:
    """Make a source's rows of its columns.

    Args:
        columns (`Mapping[str, Any]`):
            Arrays or lists by name; `split`, `fault` and `id` may be absent.
        image_feature (`Any`, *optional*):
            The type of `image`; absent: a struct of path and bytes.
    """
    count = len(columns["row"])
    types = {
        "row": pa.int64(),
        "image": IMAGE_TYPE,
        "captions": CAPTIONS_TYPE,
        "caption_rows": pa.list_(pa.int64()),
        "notes": NOTES_TYPE,
    }
    arrays = {
        name: values
        if isinstance(values, pa.Array | pa.ChunkedArray)
        else pa.array(values, types.get(name, pa.string()))
        for name, values in columns.items()
    }
    if "id" not in arrays:
        arrays["id"] = arrays["row"].cast(pa.string())
    for name in ("split", "fault"):
        arrays.setdefault(name, pa.nulls(count, pa.string()))
    return as_dataset(pa.table(arrays), image_feature)


def no_rows(*, reads_captions: bool) -> datasets.Dataset:
    """The rows of a source that only streams."""
    names = ("captions",) if reads_captions else ("label", "text")
    return make_rows({name: [] for name in ("row", "image", *names)})


def as_dataset(table: pa.Table, image_feature: Any = None) -> datasets.Dataset:
    """Wrap a table; a large one is written to a file of the data set cache and mapped.

    Args:
        table (`pa.Table`):
            The columns.
        image_feature (`Any`, *optional*):
            The type of `image`.
    """
    features = datasets.Features.from_arrow_schema(table.schema)
    if "image" in table.column_names:
        features["image"] = IMAGE_FEATURE if image_feature is None else image_feature
    digest = hashlib.sha256()
    for column in table.itercolumns():
        for chunk in column.chunks:
            for buffer in chunk.buffers():
                digest.update(b"-" if buffer is None else buffer)
            digest.update(f"{chunk.offset},{len(chunk)};".encode())
    digest.update(str(table.schema).encode())
    key = digest.hexdigest()
    table = table.cast(features.arrow_schema)
    if table.nbytes <= _MAPPED_ABOVE:
        return datasets.Dataset(table, fingerprint=key[:32])
    path = Path(datasets.config.HF_DATASETS_CACHE) / "mmhf_tables" / f"{key}.arrow"
    if not path.exists():
        with whole_file(path) as temporary, pa.ipc.new_stream(str(temporary), table.schema) as writer:
            writer.write_table(table, max_chunksize=10_000)
    return datasets.Dataset.from_file(str(path), info=datasets.DatasetInfo(features=features))
