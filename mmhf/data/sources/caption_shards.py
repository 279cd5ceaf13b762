"""The source `webdataset`, and `hub` when it streams: the training split stays in its files, the others are copied."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import datasets

from mmhf.data.bad_examples import BadExample
from mmhf.data.sources.hub import HubImages, load_hub_files, match_splits
from mmhf.data.streams.captions import StreamedCaptions, judge_fault
from mmhf.data.streams.files import ShardCount, count_shards, list_files
from mmhf.data.streams.shards import ParquetShard, Shard, ShardFault, TarShard
from mmhf.data.table import SPLITS, Caption, CaptionedRows, CaptionedSource
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import CaptionHubSection, StreamSection, WebDatasetSection

logger = logging.getLogger(__name__)

_COPIED_FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(decode=False),
        "captions": datasets.List(datasets.Value("string")),
        "fault": datasets.Value("string"),
    }
)


class ShardedSource(NamedTuple):
    """What a streamed source gives."""

    streamed: StreamedCaptions | None
    """The training split, where it is wanted."""
    tables: CaptionedSource
    """The other splits."""
    bad_examples: list[BadExample]
    """What was found while counting and copying."""


def read_sharded(
    section: WebDatasetSection | CaptionHubSection, splits: Collection[str] | None = None
) -> ShardedSource:
    """Find the files of a stream, count the samples to train on, and copy those to evaluate into the cache.

    Evaluation looks rows up by number, and reads them again after each epoch: therefore it gets tables.

    Args:
        section (`WebDatasetSection` or `CaptionHubSection`):
            Where the files are.
        splits (`Collection[str]`, *optional*):
            Splits to read; absent: all.

    Returns:
        `ShardedSource`: the splits.

    Raises:
        InputError: a split has no files or no samples, or something is bad where the recipe says to raise.
    """
    is_tars = isinstance(section, WebDatasetSection)
    shards = _tar_shards(section) if isinstance(section, WebDatasetSection) else _parquet_shards(section)
    for split in splits or ():
        if split not in shards:
            raise InputError(f"data source {section.source!r}: no split {split!r}; there is {', '.join(shards)}")
    wanted = [split for split in SPLITS if split in shards and (splits is None or split in splits)]
    bad_examples: list[BadExample] = []

    def list_faults(split: str, faults: Sequence[ShardFault]) -> None:
        on_bad_shard = section.stream.on_bad_shard
        found = [judge_fault(fault, section, split=split, on_bad_shard=on_bad_shard) for fault in faults]
        if found:
            logger.warning("data source %s: %d bad samples in %s", section.source, len(found), split)
        bad_examples.extend(found)

    tables = {
        split: _copy(shards[split], split, "tar" if is_tars else "parquet", list_faults)
        for split in wanted
        if split != "train"
    }
    streamed = None
    if "train" in wanted:
        streamed = _stream(section, section.stream, shards["train"], list_faults)
    return ShardedSource(streamed, tables, bad_examples)


def _tar_shards(section: WebDatasetSection) -> dict[str, list[Shard]]:
    patterns = {"train": section.train, "validation": section.validation, "test": section.test}
    shards: dict[str, list[Shard]] = {}
    for split, pattern in patterns.items():
        if pattern is None:
            continue
        files = list_files(pattern)
        if not files:
            raise InputError(f"data.{split}: no file is named like {pattern}")
        shards[split] = [TarShard(url, tuple(section.image), section.caption) for url in files]
    return shards


def _parquet_shards(section: CaptionHubSection) -> dict[str, list[Shard]]:
    files = load_hub_files(section.path, section.name, revision=section.revision)
    given = None if section.splits is None else {str(ours): theirs for ours, theirs in section.splits.items()}
    names = match_splits(given, files, section.path)
    columns = section.columns
    captions = (columns.captions,) if isinstance(columns.captions, str) else tuple(columns.captions)
    shards: dict[str, list[Shard]] = {}
    for split, theirs in names.items():
        for url in files[theirs]:
            if not url.lower().endswith(".parquet"):
                raise InputError(
                    f"data set {section.path}: only parquet files stream, not {url}; set streaming: false"
                )
        shards[split] = [ParquetShard(url, columns.image or "image", captions, columns.id) for url in files[theirs]]
    return shards


def _stream(
    section: WebDatasetSection | CaptionHubSection,
    stream: StreamSection,
    shards: list[Shard],
    list_faults: Callable[[str, Sequence[ShardFault]], None],
) -> StreamedCaptions:
    sizes: tuple[int, ...] | None = None
    length = stream.epoch_samples
    if length is None:
        counts = count_shards(shards)
        list_faults("train", [fault for count in counts for fault in count.faults])
        sizes = tuple(count.captions if section.captions == "all" else count.images for count in counts)
        length = sum(sizes)
        if not length:
            raise InputError(
                f"data.train: none of the {len(shards)} files has a sample to use; {_first_fault(counts)}"
            )
    if section.limit is not None:
        length = min(length, section.limit)
    logger.info("data source %s: %d samples an epoch from %d files", section.source, length, len(shards))
    return StreamedCaptions(tuple(shards), sizes, length, section, stream)


def _first_fault(counts: Sequence[ShardCount]) -> str:
    first = next((fault for count in counts for fault in count.faults), None)
    return "they are empty" if first is None else f"first: {first.id}: {first.reason}"


def _copy(
    shards: list[Shard], split: str, kind: str, list_faults: Callable[[str, Sequence[ShardFault]], None]
) -> CaptionedRows:
    versions = [shard.version() for shard in shards]
    table = datasets.Dataset.from_generator(
        _samples, features=_COPIED_FEATURES, gen_kwargs={"shards": shards, "versions": versions}
    )
    faults = [ShardFault(*json.loads(fault)) for fault in table["fault"][:] if fault]
    list_faults(split, faults)
    usable = [position for position, fault in enumerate(table["fault"][:]) if not fault]
    rows = [position + 1 for position in usable]
    captions, names = table["captions"][:], table["id"][:]
    return CaptionedRows(
        origin=f"the {split} {kind} files",
        rows=rows,
        ids=[names[position] for position in usable],
        captions=[[Caption(text, position + 1) for text in captions[position]] for position in usable],
        images=HubImages(table, "image", usable),
    )


def _samples(shards: list[Shard], versions: list[str]) -> Iterator[dict[str, Any]]:
    """All samples; `versions` makes `datasets` copy them anew when a file has changed."""
    for shard in shards:
        for sample in shard.read():
            if isinstance(sample, ShardFault):
                yield {"id": sample.id, "image": None, "captions": [], "fault": json.dumps(sample)}
            else:
                image = {"path": None, "bytes": sample.content}
                yield {"id": sample.id, "image": image, "captions": sample.captions, "fault": None}
