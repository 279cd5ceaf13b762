"""The source `hub`: whatever `datasets.load_dataset` takes, with labels or captions, loaded or streamed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np

from mmhf.conventions import as_text
from mmhf.data.hub_datasets import (
    DatasetColumns,
    load_hub_files,
    load_hub_splits,
    match_splits,
    read_dataset,
    with_encoded_images,
)
from mmhf.data.readers import require_column
from mmhf.data.sources.webdataset import read_shards
from mmhf.data.streams.shards import ParquetShard, Shard
from mmhf.data.table import EmbeddedImages, Part, Reading, SourceTable, no_rows
from mmhf.data.targets import row_target
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import CaptionHubSection
from mmhf.recipe.data_sections import HubDataSection
from mmhf.recipe.row_sections import SplitSection

logger = logging.getLogger(__name__)


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
    names = _splits_to_read(section, list(loaded), origin, has_column=split_column is not None)
    extra = [*section.filters.columns(), *reading.extra_columns]
    if isinstance(section.split, SplitSection) and section.split.group_by is not None:
        extra.append(section.split.group_by)
    own = section.columns
    columns = DatasetColumns(own.image or "image", id=own.id, split=split_column, extra=extra)
    if isinstance(section, CaptionHubSection):
        columns = replace(columns, captions=section.columns.caption_columns(), joined_by=reading.extra_columns)
    else:
        target = row_target(section)
        columns = replace(columns, label=section.columns.label, target=target, text=section.columns.text)
    parts = [
        read_dataset(
            loaded[theirs],
            columns,
            origin=origin if len(loaded) == 1 else f"{origin}, split {theirs}",
            split=split,
        )
        for split, theirs in names.items()
    ]
    starts = np.cumsum([0, *(len(rows) for rows, _ in parts)])
    used = np.concatenate([start + places for start, (_, places) in zip(starts, parts, strict=False)])
    label_of = None
    if isinstance(section, HubDataSection) and row_target(section).column == "label":
        label_of = _label_map(section, next(iter(loaded.values())).features)
    part = Part(origin, EmbeddedImages(datasets.Image(decode=False)))
    rows = datasets.concatenate_datasets([rows for rows, _ in parts])
    return SourceTable(rows, {None: part}, label_of, section.split, used=used)


def _splits_to_read(
    section: HubDataSection | CaptionHubSection, available: Sequence[str], origin: str, *, has_column: bool
) -> dict[str | None, str]:
    """Our split → the data set's; None: the rows are split by a column, or by `data.split`."""
    if has_column:
        if len(available) > 1:
            raise InputError(f"data.split_column: {origin} is split already, into {', '.join(available)}")
        return {None: available[0]}
    names = _split_names(section, available)
    if section.split is None:
        return dict(names.items())
    if "train" not in names:
        raise InputError(f"{origin}: no split 'train' for data.split to cut; name it in data.splits")
    return {None: names["train"]}


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


def _name_of(feature: object, value: object) -> str | None:
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
    columns, keeps_empty = section.columns, section.may_have_empty_texts()
    label_feature = features[columns.label]

    def usable(example: dict[str, Any]) -> bool:
        label = _name_of(label_feature, example[columns.label])
        if label not in label_ids:
            return _judge(f"unknown label {label!r}", "on_bad_row", section.on_bad_row)
        if columns.text is not None and not keeps_empty and as_text(example[columns.text]) is None:
            return _judge("the text is empty", "on_empty_text", section.on_empty_text)
        return True

    def _judge(reason: str, key: str, policy: str) -> bool:
        if policy == "raise":
            raise InputError(f"data set {section.path}: {reason}; data.{key}=skip goes on without such rows")
        logger.warning("data set %s: %s", section.path, reason)
        return policy in ("blank", "mask")

    return usable


READERS = {HubDataSection: read_hub, CaptionHubSection: read_hub}
