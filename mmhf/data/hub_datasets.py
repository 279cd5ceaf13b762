"""Data sets as the library `datasets` loads them: their splits, files and columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmhf.data.captions import caption_array, join_captions
from mmhf.data.columns import text_array
from mmhf.data.readers import Values, require_column
from mmhf.data.splits import name_splits
from mmhf.data.table import SPLITS, as_dataset, extra_column
from mmhf.data.targets import RowTarget
from mmhf.errors import InputError, UnreachableError

_ROWS_AT_ONCE = 10_000
_SAVED_TO_DISK = ("dataset_dict.json", "state.json")
"""Files of a folder that `Dataset.save_to_disk` or that of a `DatasetDict` wrote."""


@dataclass(frozen=True)
class DatasetColumns:
    """Names of a data set's columns.

    Attributes:
        image (`str`): Images.
        captions (`Sequence[str]`): Texts or lists of texts.
        label, text (`str`, *optional*): Class labels and texts.
        target ([`RowTarget`], *optional*): What is learnt of a row that has a label, and how that is read.
        id (`str`, *optional*): Names the rows; with captions, rows of the same id are one image. Absent: each row is
            one.
        split (`str`, *optional*): What split a row is in.
        extra (`Sequence[str]`): Further columns.
        joined_by (`Sequence[str]`): Those of them that have to agree, too, in rows whose captions are joined.
    """

    image: str
    captions: Sequence[str] = ()
    label: str | None = None
    target: RowTarget | None = None
    text: str | None = None
    id: str | None = None
    split: str | None = None
    extra: Sequence[str] = ()
    joined_by: Sequence[str] = ()

    def __iter__(self) -> Iterator[str]:
        labels = [self.label] if self.target is None or self.label is None else self.target.columns_read(self.label)
        named = (self.image, *self.captions, *labels, self.text, self.id, self.split, *self.extra)
        return (name for name in named if name is not None)


def read_dataset(
    part: datasets.Dataset,
    columns: DatasetColumns,
    *,
    origin: str,
    split: str | None = None,
    split_names: Mapping[str, str] | None = None,
) -> tuple[datasets.Dataset, NDArray[np.int64]]:
    """Read the columns of a data set; its images stay where they are.

    Args:
        part (`datasets.Dataset`):
            A split of it.
        columns ([`DatasetColumns`]):
            Which.
        origin (`str`):
            The data set, for messages.
        split (`str`, *optional*):
            The split of all rows, unless a column says it.
        split_names (`Mapping[str, str]`, *optional*):
            What the column of splits calls one → our name.

    Returns:
        `tuple`: the rows, and the positions of those that are not a further caption of another one.

    Raises:
        InputError: a column is missing, or holds something else.
    """
    for name in columns:
        require_column(origin, name, part.features)
    count = len(part)
    numbers = pa.array(range(1, count + 1), pa.int64())
    ids = None if columns.id is None else _texts(part, columns.id)
    names = numbers.cast(pa.string()) if ids is None else pa.compute.coalesce(ids, numbers.cast(pa.string()))
    read: dict[str, pa.Array | pa.ChunkedArray] = {"row": numbers, "id": names}
    reasons = pa.nulls(count, pa.string())
    if columns.captions:
        read["captions"], reasons = _captions(part, columns.captions)
    if columns.target is not None and columns.label is not None:
        cells = {name: _cells(part, name, columns.target) for name in columns.target.columns_read(columns.label)}
        read[columns.target.column], faults = columns.target.read_cells(cells)
        reasons = pa.array([faults.get(position) for position in range(count)], pa.string()) if faults else reasons
        read["text"] = pa.nulls(count, pa.string()) if columns.text is None else _texts(part, columns.text)
    for name in dict.fromkeys(columns.extra):
        read[extra_column(name)] = _texts(part, name)
    read["split"] = pa.array([split] * count, pa.string())
    if columns.split is not None:
        known = {} if split_names is None else {"names": split_names}
        read["split"], reasons = name_splits(_texts(part, columns.split), reasons, "the split", **known)
    table, used = pa.table({**read, "fault": reasons}), np.arange(count)
    if columns.captions and ids is not None:
        table, used = _joined(table, ids, [extra_column(name) for name in columns.joined_by])
    encoded = with_encoded_images(part, columns.image, origin).select_columns([columns.image])
    images = encoded if columns.image == "image" else encoded.rename_column(columns.image, "image")
    return datasets.concatenate_datasets([images, as_dataset(table)], axis=1), used


def _captions(part: datasets.Dataset, names: Sequence[str]) -> tuple[pa.ChunkedArray, pa.Array]:
    """Lists of captions, and why a row cannot be read."""
    read = [
        caption_array([batch[name].combine_chunks() for name in names])
        for batch in part.select_columns(list(names)).with_format("arrow").iter(_ROWS_AT_ONCE)
    ]
    faults = {n * _ROWS_AT_ONCE + place: why for n, (_, found) in enumerate(read) for place, why in found.items()}
    return pa.chunked_array([array for array, _ in read]), pa.array(map(faults.get, range(len(part))), pa.string())


def _joined(table: pa.Table, ids: pa.Array, by: Sequence[str]) -> tuple[pa.Table, NDArray[np.int64]]:
    """Join the captions of rows with the same id; a row that is joined to another one stays, and is not used."""
    places = np.arange(len(table))
    known = pa.compute.if_else(pa.compute.is_null(table.column("fault")), ids, pa.scalar(None, pa.string()))
    joined = join_captions(table.append_column("place", pa.array(places)), known, by)
    used: NDArray[np.int64] = joined.column("place").to_numpy()
    rows = np.zeros(len(table), dtype=np.int64)
    rows[used] = np.arange(len(used))
    return joined.drop_columns("place").take(pa.array(rows, mask=~np.isin(places, used))), used


def _cells(part: datasets.Dataset, column: str, target: RowTarget) -> Values:
    """A column of what is learnt; classes by their names, also in lists."""
    if target.column != "labels":
        return _texts(part, column)
    feature, rows = part.features[column], part.select_columns([column])[column][:]
    classes = feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else None
    if isinstance(classes, datasets.ClassLabel):
        rows = [None if row is None else [classes.int2str(each) for each in row] for row in rows]
    return rows


def _texts(part: datasets.Dataset, column: str) -> pa.Array:
    """A column as strings; classes by their names."""
    values = part.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
    feature = part.features[column]
    if not isinstance(feature, datasets.ClassLabel):
        return text_array(values)
    # -1 marks rows without a label.
    return pa.array(feature.names, pa.string()).take(pa.compute.if_else(pa.compute.less(values, 0), None, values))


def load_hub_splits(path: str, name: str | None = None, **options: Any) -> Mapping[str, Any]:
    """Load a data set with `datasets.load_dataset`, or open it as streams.

    Args:
        path (`str`):
            A data set repository or folder; also one that `save_to_disk` wrote.
        name (`str`, *optional*):
            Its configuration.
        options (`Any`):
            `revision`, `streaming` and `data_files`, as `load_dataset` takes them.

    Returns:
        `Mapping[str, Any]`: the data set's own splits.

    Raises:
        UnreachableError: the Hub cannot be reached.
        InputError: there is no such data set, or it cannot be read.
    """
    with _loading(path):
        if any((Path(path) / file).is_file() for file in _SAVED_TO_DISK):
            saved = datasets.load_from_disk(path)
            splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
            if options.get("streaming"):
                return {split: part.to_iterable_dataset() for split, part in splits.items()}
            return splits
        loaded: Mapping[str, Any] = datasets.load_dataset(path, name, **options)
        return loaded


def load_hub_files(path: str, name: str | None = None, *, revision: str | None = None) -> dict[str, list[str]]:
    """Find the files of a data set without reading them.

    Args:
        path, name, revision (`str`):
            As `load_hub_splits` takes them.

    Returns:
        `dict[str, list[str]]`: the data set's own split → paths or URLs of its files, which fsspec opens.

    Raises:
        UnreachableError: the Hub cannot be reached.
        InputError: there is no such data set, or it has no data files.
    """
    with _loading(path):
        builder = datasets.load_dataset_builder(path, name, revision=revision)
    files = builder.config.data_files
    if not files:
        raise InputError(f"data.path: the data set {path} has no data files to stream")
    return {str(split): [str(file) for file in of_split] for split, of_split in files.items()}


@contextmanager
def _loading(path: str) -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        raise UnreachableError(f"data.path: cannot reach the data set {path}: {_first_line(error)}") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"data.path: cannot load the data set {path}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def with_encoded_images(part: Any, column: str, origin: str) -> Any:
    """Check that a column of a data set has images, and keep them encoded.

    Args:
        part (`Dataset` or `IterableDataset`):
            A split.
        column (`str`):
            The column.
        origin (`str`):
            The data set, for messages.

    Raises:
        InputError: it has something else.
    """
    feature = part.features[column]
    is_binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    is_struct = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    if not (isinstance(feature, datasets.Image) or is_binary or is_struct):
        raise InputError(f"{origin}: column {column!r} has no images but {feature}")
    return part.cast_column(column, datasets.Image(decode=False))


def match_splits(given: Mapping[str, str] | None, available: Collection[str], path: str) -> dict[str, str]:
    """Find the split of a data set that each of ours is.

    Args:
        given (`Mapping[str, str]`, *optional*):
            Our split → the data set's; absent: the splits of the same names.
        available (`Collection[str]`):
            The data set's splits.
        path (`str`):
            The data set, for messages.

    Returns:
        `dict[str, str]`: our split → the data set's.

    Raises:
        InputError: one is not there, or none has one of our names.
    """
    names = {split: split for split in SPLITS if split in available} if given is None else dict(given)
    found = ", ".join(available)
    for theirs in names.values():
        if theirs not in available:
            raise InputError(f"data.splits: {path} has no split {theirs!r}; it has {found}")
    if not names:
        raise InputError(f"data.splits: {path} has the splits {found}; say which is train, validation, test")
    return names
