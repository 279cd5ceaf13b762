"""The source `hub`: whatever `datasets.load_dataset` takes, with labels or captions, loaded or streamed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmhf.data.captions import caption_array, join_captions
from mmhf.data.readers import require_column
from mmhf.data.sources.webdataset import read_shards
from mmhf.data.splits import name_splits
from mmhf.data.streams.shards import ParquetShard, Shard
from mmhf.data.table import (
    SPLITS,
    EmbeddedImages,
    Part,
    Reading,
    SourceTable,
    as_dataset,
    as_text,
    extra_column,
    no_rows,
    text_array,
)
from mmhf.errors import InputError, UnreachableError
from mmhf.recipe.caption_data_sections import CaptionHubSection
from mmhf.recipe.data_sections import HubDataSection, SplitSection

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 10_000
_SAVED_TO_DISK = ("dataset_dict.json", "state.json")
"""Files of a folder that `Dataset.save_to_disk` or that of a `DatasetDict` wrote."""


def read_hub(section: HubDataSection | CaptionHubSection, reading: Reading) -> SourceTable:
    """Load a data set, or open it as streams.

    Args:
        section (`HubDataSection` or `CaptionHubSection`):
            The data set, its columns, splits and labels.
        reading (`Reading`):
            What the task reads.

    Returns:
        `SourceTable`: a row for each of the data set, or where captions have `columns.id`, for each id.
        Row numbers count from 1 in the data set's own split. Images stay where they are.

    Raises:
        InputError: the data set cannot be loaded, or lacks a column or a split.
        UnreachableError: the Hub cannot be reached.
    """
    if isinstance(section, HubDataSection) and not reading.text:
        section = section.model_copy(update={"columns": section.columns.model_copy(update={"text": None})})
    if section.streaming:
        if reading.extra_columns or section.filters.columns():
            name = [*reading.extra_columns, *section.filters.columns()][0]
            raise InputError(f"column {name!r} is asked for, but a stream keeps no columns")
        return (
            _stream_captions(section, reading) if isinstance(section, CaptionHubSection) else _stream_labelled(section)
        )
    origin = f"data set {section.path}"
    loaded = load_hub_splits(section.path, section.name, revision=section.revision)
    split_column = section.split_column if isinstance(section, CaptionHubSection) else None
    if split_column is not None:
        if len(loaded) > 1:
            raise InputError(f"data.split_column: {origin} is split already, into {', '.join(loaded)}")
        names: dict[str | None, str] = {None: next(iter(loaded))}
    else:
        names = dict(_split_names(section, loaded).items())
        if section.split is not None:
            if "train" not in names:
                raise InputError(f"{origin}: no split 'train' for data.split to cut; name it in data.splits")
            names = {None: names["train"]}
    columns = section.columns
    captions: Sequence[str] = ()
    label = text = None
    if isinstance(section, CaptionHubSection):
        captions = section.columns.caption_columns()
    else:
        label, text = section.columns.label, section.columns.text
    extra = [*section.filters.columns(), *reading.extra_columns]
    if isinstance(section.split, SplitSection) and section.split.group_by is not None:
        extra.append(section.split.group_by)
    parts = [
        read_dataset(
            loaded[theirs],
            origin=origin if len(loaded) == 1 else f"{origin}, split {theirs}",
            image=columns.image or "image",
            captions=captions,
            label=label,
            text=text,
            id_column=columns.id,
            split_column=split_column,
            extra=extra,
            split=split,
        )
        for split, theirs in names.items()
    ]
    starts = np.cumsum([0, *(len(rows) for rows, _ in parts)])
    used = np.concatenate([start + places for start, (_, places) in zip(starts, parts, strict=False)])
    label_of = None
    if isinstance(section, HubDataSection):
        label_of = _label_map(section, next(iter(loaded.values())).features)
    part = Part(origin, EmbeddedImages(datasets.Image(decode=False)))
    rows = datasets.concatenate_datasets([rows for rows, _ in parts])
    return SourceTable(rows, {None: part}, label_of, section.split, used=used)


def read_dataset(
    part: datasets.Dataset,
    *,
    origin: str,
    image: str,
    captions: Sequence[str] = (),
    label: str | None = None,
    text: str | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    extra: Sequence[str] = (),
    split: str | None = None,
    split_names: Mapping[str, str] | None = None,
) -> tuple[datasets.Dataset, NDArray[np.int64]]:
    """Read the columns of a data set; its images stay where they are.

    Args:
        part (`datasets.Dataset`):
            A split of it.
        origin (`str`):
            The data set, for messages.
        image (`str`):
            Column of the images.
        captions (`Sequence[str]`):
            Columns of texts or of lists of texts.
        label, text (`str`, *optional*):
            Columns of class labels and texts.
        id_column (`str`, *optional*):
            Names the rows; with captions, rows of the same id are one image. Absent: each row is one.
        split_column (`str`, *optional*):
            What split a row is in.
        extra (`Sequence[str]`):
            Further columns.
        split (`str`, *optional*):
            The split of all rows.
        split_names (`Mapping[str, str]`, *optional*):
            What `split_column` calls a split → our name.

    Returns:
        `tuple`: the rows, and the positions of those that are not a further caption of another one.

    Raises:
        InputError: a column is missing, or holds something else.
    """
    for name in (image, *captions, label, text, id_column, split_column, *extra):
        if name is not None:
            require_column(origin, name, part.features)
    encoded = with_encoded_images(part, image, origin).select_columns([image])
    images = encoded if image == "image" else encoded.rename_column(image, "image")
    count = len(part)
    numbers = pa.array(range(1, count + 1), pa.int64())
    ids = None if id_column is None else _texts(part, id_column)
    reasons = pa.nulls(count, pa.string())
    columns: dict[str, Any] = {
        "row": numbers,
        "id": numbers.cast(pa.string()) if ids is None else pa.compute.coalesce(ids, numbers.cast(pa.string())),
    }
    if captions:
        read = [
            caption_array([batch[name].combine_chunks() for name in captions])
            for batch in part.select_columns(list(captions)).with_format("arrow").iter(_ROWS_AT_ONCE)
        ]
        faults = {n * _ROWS_AT_ONCE + place: why for n, (_, found) in enumerate(read) for place, why in found.items()}
        columns["captions"] = pa.chunked_array([array for array, _ in read])
        reasons = pa.array([faults.get(position) for position in range(count)], pa.string()) if faults else reasons
    if label is not None:
        columns["label"] = _texts(part, label)
        columns["text"] = pa.nulls(count, pa.string()) if text is None else _texts(part, text)
    for name in dict.fromkeys(extra):
        columns[extra_column(name)] = _texts(part, name)
    columns["split"] = pa.array([split] * count, pa.string())
    if split_column is not None:
        names = {} if split_names is None else {"names": split_names}
        columns["split"], reasons = name_splits(_texts(part, split_column), reasons, "the split", **names)
    columns["fault"] = reasons
    table = pa.table(columns)
    used = np.arange(count)
    if captions and ids is not None:
        known = pa.compute.if_else(pa.compute.is_null(reasons), ids, pa.scalar(None, pa.string()))
        table = join_captions(table.append_column("place", pa.array(used)), known)
        used = table.column("place").to_numpy()
        # The rows of the data set stay where they are: those that were joined to others are not used.
        places = np.zeros(count, dtype=np.int64)
        places[used] = np.arange(len(used))
        table = table.drop_columns("place").take(pa.array(places, mask=~np.isin(np.arange(count), used)))
    return datasets.concatenate_datasets([images, as_dataset(table)], axis=1), used


def _stream_labelled(section: HubDataSection) -> SourceTable:
    """Streams that are not read ahead: bad rows are found as they come by."""
    if section.split is not None:
        raise InputError(
            "data.split: a stream cannot be cut; name its splits in data.splits, or set data.streaming=false"
        )
    loaded = load_hub_splits(section.path, section.name, revision=section.revision, streaming=True)
    loaded = {name: _prepare(section, str(name), part) for name, part in loaded.items()}
    names = _split_names(section, loaded)
    label_of = _label_map(section, next(iter(loaded.values())).features)
    if label_of is None:
        raise InputError("data.labels: a stream's labels must be given, since its rows are not read beforehand")

    def opener(part: datasets.IterableDataset) -> Callable[[dict[str, int]], datasets.IterableDataset]:
        return lambda label_ids: _stream(section, part, label_ids)

    streams = {split: opener(loaded[theirs]) for split, theirs in names.items()}
    part = Part(f"data set {section.path}", EmbeddedImages())
    return SourceTable(no_rows(reads_captions=False), {None: part}, label_of, streams=streams)


def _stream_captions(section: CaptionHubSection, reading: Reading) -> SourceTable:
    files = load_hub_files(section.path, section.name, revision=section.revision)
    columns = section.columns
    captions = tuple(columns.caption_columns())
    shards: dict[str, list[Shard]] = {}
    for split, theirs in _split_names(section, files).items():
        for url in files[theirs]:
            if not url.lower().endswith(".parquet"):
                raise InputError(
                    f"data set {section.path}: only parquet files stream, not {url}; set streaming: false"
                )
        shards[split] = [ParquetShard(url, columns.image or "image", captions, columns.id) for url in files[theirs]]
    return read_shards(section, reading, shards, kind="parquet")


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _prepare(section: HubDataSection, name: str, part: Any) -> Any:
    """Check the columns and keep images encoded."""
    columns = section.columns
    features = part.features
    if features is None:  # a stream of CSV or JSON tells its columns only when it is read
        raise InputError(f"data set {section.path}: its columns are not known beforehand; set data.streaming=false")
    for column in (columns.image, columns.text, columns.label, columns.id):
        if column is not None:
            require_column(f"data set {section.path}, split {name}", column, features)
    return with_encoded_images(part, columns.image, f"data set {section.path}")


def _split_names(section: HubDataSection | CaptionHubSection, available: Collection[str]) -> dict[str, str]:
    given = None if section.splits is None else {str(ours): theirs for ours, theirs in section.splits.items()}
    return match_splits(given, available, section.path)


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


def _texts(part: datasets.Dataset, column: str) -> pa.Array:
    """A column as strings; classes by their names."""
    values = part.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
    feature = part.features[column]
    if not isinstance(feature, datasets.ClassLabel):
        return text_array(values)
    # -1 marks rows without a label.
    return pa.array(feature.names, pa.string()).take(pa.compute.if_else(pa.compute.less(values, 0), None, values))


def _name_of(feature: Any, value: Any) -> str | None:
    if isinstance(feature, datasets.ClassLabel) and isinstance(value, int):
        return feature.int2str(value) if value >= 0 else None
    return as_text(value)


def _label_map(section: HubDataSection, features: datasets.Features) -> dict[str, str] | None:
    if section.labels is not None:
        return dict(section.labels)
    feature = features[section.columns.label]
    return {name: name for name in feature.names} if isinstance(feature, datasets.ClassLabel) else None


def _stream(
    section: HubDataSection, source: datasets.IterableDataset, label_ids: dict[str, int]
) -> datasets.IterableDataset:
    if section.limit is not None:
        source = source.take(section.limit)
    usable = source.filter(_usable_row(section, source.features, label_ids))
    columns = section.columns
    label_feature = source.features[columns.label]
    features = datasets.Features(
        {
            "row": datasets.Value("int64"),
            "id": datasets.Value("string"),
            "image": datasets.Image(decode=False),
            "text": datasets.Value("string"),
            "label": datasets.Value("int64"),
        }
    )

    def to_row(example: dict[str, Any], position: int) -> dict[str, Any]:
        name = None if columns.id is None else as_text(example[columns.id])
        return {
            "row": position + 1,
            "id": name or str(position + 1),
            "image": example[columns.image],
            "text": "" if columns.text is None else as_text(example[columns.text]) or "",
            "label": label_ids[_name_of(label_feature, example[columns.label]) or ""],
        }

    unused = [column for column in source.features if column not in features]
    return usable.map(to_row, with_indices=True, remove_columns=unused, features=features)


def _usable_row(
    section: HubDataSection, features: datasets.Features, label_ids: dict[str, int]
) -> Callable[[dict[str, Any]], bool]:
    columns = section.columns
    label_feature = features[columns.label]

    def usable(example: dict[str, Any]) -> bool:
        label = _name_of(label_feature, example[columns.label])
        if label not in label_ids:
            return _judge(f"unknown label {label!r}", "on_bad_row", section.on_bad_row)
        if columns.text is not None and as_text(example[columns.text]) is None:
            return _judge("the text is empty", "on_empty_text", section.on_empty_text)
        return True

    def _judge(reason: str, key: str, policy: str) -> bool:
        if policy == "raise":
            raise InputError(f"data set {section.path}: {reason}; data.{key}=skip goes on without such rows")
        logger.warning("data set %s: %s", section.path, reason)
        return policy in ("blank", "mask")

    return usable


READERS = {HubDataSection: read_hub, CaptionHubSection: read_hub}
