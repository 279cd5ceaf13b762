"""The source `webdataset`, and files that are streamed: the training split stays in them, the others are copied."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from mmhf.data.bad_examples import BadExample
from mmhf.data.streams.captions import StreamedCaptions, judge_fault
from mmhf.data.streams.files import count_shards, list_files
from mmhf.data.streams.shards import Shard, ShardFault, TarShard
from mmhf.data.table import SPLITS, EmbeddedImages, Part, Reading, SourceTable, as_dataset, no_rows
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import CaptionHubSection, WebDatasetSection

logger = logging.getLogger(__name__)

_COPIED_FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(decode=False),
        "captions": datasets.List(datasets.Value("string")),
        "shard_fault": datasets.Value("string"),
    }
)


def read_webdataset(section: WebDatasetSection, reading: Reading) -> SourceTable:
    """Find tars, and read them as `read_shards` does.

    Raises:
        InputError: a split has no files, or filters ask for columns.
    """
    for name in (*section.filters.columns(), *reading.extra_columns):
        raise InputError(f"column {name!r} is asked for, but a stream keeps no columns")
    patterns = {"train": section.train, "validation": section.validation, "test": section.test}
    shards: dict[str, list[Shard]] = {}
    for split, pattern in patterns.items():
        if pattern is None:
            continue
        files = list_files(pattern)
        if not files:
            raise InputError(f"data.{split}: no file is named like {pattern}")
        shards[split] = [TarShard(url, tuple(section.image), section.caption) for url in files]
    return read_shards(section, reading, shards, kind="tar")


def read_shards(
    section: WebDatasetSection | CaptionHubSection, reading: Reading, shards: dict[str, list[Shard]], *, kind: str
) -> SourceTable:
    """Count the samples of a stream to train on, and copy those to evaluate into the cache.

    Evaluation looks rows up by number, and reads them again after each epoch: therefore it gets tables.

    Args:
        section (`WebDatasetSection` or `CaptionHubSection`):
            How the stream is read, and what to do with bad samples.
        reading (`Reading`):
            Says which splits are wanted.
        shards (`dict[str, list[Shard]]`):
            The files of each split.
        kind (`str`):
            What they are, for messages.

    Returns:
        `SourceTable`: the wanted splits.

    Raises:
        InputError: a wanted split is not there, a split has no samples, or something is bad where the recipe says to
            raise.
    """
    for split in reading.splits or ():
        if split not in shards:
            raise InputError(f"data source {section.source!r}: no split {split!r}; there is {', '.join(shards)}")
    bad_examples: list[BadExample] = []

    def list_faults(split: str, faults: Sequence[ShardFault]) -> None:
        on_bad_shard = section.stream.on_bad_shard
        found = [judge_fault(fault, section, split=split, on_bad_shard=on_bad_shard) for fault in faults]
        if found:
            logger.warning("data source %s: %d bad samples in %s", section.source, len(found), split)
        bad_examples.extend(found)

    parts: dict[str | None, Part] = {}
    tables, used, start = [], [np.zeros(0, dtype=np.int64)], 0
    for split in SPLITS[1:]:
        if split not in shards or not reading.wants(split):
            continue
        rows, faults = _copy(shards[split], split)
        list_faults(split, [ShardFault(*json.loads(fault)) for fault in faults if fault])
        tables.append(rows)
        used.append(start + np.array([place for place, fault in enumerate(faults) if not fault], dtype=np.int64))
        start += len(rows)
        parts[split] = Part(f"the {split} {kind} files", EmbeddedImages(datasets.Image(decode=False)))
    source = SourceTable(
        datasets.concatenate_datasets(tables) if tables else no_rows(reads_captions=True),
        parts or {None: Part(f"data source {section.source!r}", EmbeddedImages())},
        used=np.concatenate(used),
        bad_examples=bad_examples,
    )
    if "train" in shards and reading.wants("train"):
        streamed = _stream(section, shards["train"], list_faults)
        source.streams["train"] = lambda label_ids: streamed
    return source


def _stream(
    section: WebDatasetSection | CaptionHubSection,
    shards: list[Shard],
    list_faults: Callable[[str, Sequence[ShardFault]], None],
) -> StreamedCaptions:
    stream = section.stream
    sizes: tuple[int, ...] | None = None
    length = stream.epoch_samples
    if length is None:
        counts = count_shards(shards)
        list_faults("train", [fault for count in counts for fault in count.faults])
        sizes = tuple(count.captions if section.captions == "all" else count.images for count in counts)
        length = sum(sizes)
        if not length:
            first = next((fault for count in counts for fault in count.faults), None)
            why = "they are empty" if first is None else f"first: {first.id}: {first.reason}"
            raise InputError(f"data.train: none of the {len(shards)} files has a sample to use; {why}")
    if section.limit is not None:
        length = min(length, section.limit)
    logger.info("data source %s: %d samples an epoch from %d files", section.source, length, len(shards))
    return StreamedCaptions(tuple(shards), sizes, length, section, stream)


def _copy(shards: list[Shard], split: str) -> tuple[datasets.Dataset, list[str | None]]:
    """All samples of a split as rows, and the fault of each."""
    versions = [shard.version() for shard in shards]
    copied = datasets.Dataset.from_generator(
        _samples, features=_COPIED_FEATURES, gen_kwargs={"shards": shards, "versions": versions}
    )
    count = len(copied)
    columns = {
        "row": pa.array(range(1, count + 1), pa.int64()),
        "id": copied.data.column("id"),
        "captions": copied.data.column("captions"),
        "split": pa.array([split] * count, pa.string()),
        "fault": pa.nulls(count, pa.string()),
    }
    rows = datasets.concatenate_datasets([copied.select_columns(["image"]), as_dataset(pa.table(columns))], axis=1)
    return rows, copied.data.column("shard_fault").to_pylist()


def _samples(shards: list[Shard], versions: list[str]) -> Iterator[dict[str, Any]]:
    """All samples; `versions` makes `datasets` copy them anew when a file has changed."""
    for shard in shards:
        for sample in shard.read():
            if isinstance(sample, ShardFault):
                yield {"id": sample.id, "image": None, "captions": [], "shard_fault": json.dumps(sample)}
            else:
                image = {"path": None, "bytes": sample.content}
                yield {"id": sample.id, "image": image, "captions": sample.captions, "shard_fault": None}


READERS = {WebDatasetSection: read_webdataset}
