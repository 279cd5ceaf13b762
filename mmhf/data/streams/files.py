"""The files of a stream: found by patterns, and how many samples each has, counted once and kept."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
from filelock import FileLock

from mmhf.data.remote.files import open_filesystem
from mmhf.data.streams.shards import Shard, ShardFault
from mmhf.files import write_text
from mmhf.parallel import map_in_threads


def expand_braces(pattern: str) -> list[str]:
    """Write out `{000..011}` and `{a,b}` as a shell does.

    Args:
        pattern (`str`):
            Such as `data/{00..11}.tar`; leading zeros are kept, a range may count down.

    Returns:
        `list[str]`: each name once for each combination; the pattern itself when it has no braces.
    """
    start = pattern.find("{")
    end = _closing(pattern, start)
    if start < 0 or end < 0:
        return [pattern]
    head, inner, tails = pattern[:start], pattern[start + 1 : end], expand_braces(pattern[end + 1 :])
    first, dots, last = inner.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        step = 1 if int(last) >= int(first) else -1
        middles = [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    else:
        parts = _split_outside(inner)
        middles = [text for part in parts for text in expand_braces(part)] if len(parts) > 1 else [f"{{{inner}}}"]
    return [head + middle + tail for middle in middles for tail in tails]


def _closing(pattern: str, start: int) -> int:
    depth = 0
    for place in range(max(start, 0), len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            return place if pattern[place] == "}" else -1
    return -1


def _split_outside(text: str) -> list[str]:
    """Split at commas that are in no inner braces."""
    parts, depth = [""], 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def list_files(patterns: str | Sequence[str]) -> list[str]:
    """Find the files that patterns name.

    Args:
        patterns (`str` or `Sequence[str]`):
            Paths or URLs with braces and, where they can be listed, `*`, `?` and `[...]`.

    Returns:
        `list[str]`: in the order given; those of a `*` sorted. A name without one need not exist.
    """
    files: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in expand_braces(pattern):
            if not any(character in name for character in "*?["):
                files.append(name)
                continue
            fs, path = open_filesystem(name)
            files += [fs.unstrip_protocol(found) if "://" in name else found for found in sorted(fs.glob(path))]
    return files


logger = logging.getLogger(__name__)

_FORMAT = 1
_PROGRESS_ABOVE = 20


class ShardCount(NamedTuple):
    """What a shard holds."""

    images: int
    captions: int
    faults: list[ShardFault]


def count_shards(shards: Sequence[Shard], label: str = "counting samples") -> list[ShardCount]:
    """Count the samples of shards; of local tars, only names and captions are read.

    A shard is counted again when its file has changed. Several processes of a machine wait for the one that counts.

    Args:
        shards (`Sequence[Shard]`):
            The shards.
        label (`str`, defaults to `"counting samples"`):
            What a progress bar is called, where there are many.

    Returns:
        `list[ShardCount]`: in the same order.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "mmhf_shards"
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(json.dumps([shard.url for shard in shards]).encode()).hexdigest()
    with FileLock(folder / f"{key}.lock"):
        shown = label if len(shards) > _PROGRESS_ABOVE else None
        return list(map_in_threads(lambda shard: _cached_count(shard, folder), shards, label=shown))


def _cached_count(shard: Shard, folder: Path) -> ShardCount:
    version = shard.version()
    path = folder / f"{hashlib.sha256(f'{_FORMAT}{version}'.encode()).hexdigest()}.json"
    if version and path.exists():
        images, captions, faults = json.loads(path.read_text(encoding="utf-8"))
        return ShardCount(images, captions, [ShardFault(*fault) for fault in faults])
    counted = _count(shard)
    # What cannot be read now may be there again later.
    if version:
        write_text(path, json.dumps(counted))
    return counted


def _count(shard: Shard) -> ShardCount:
    images = captions = 0
    faults = []
    for sample in shard.read(with_images=False):
        if isinstance(sample, ShardFault):
            faults.append(sample)
        else:
            images += 1
            captions += len(sample.captions)
    return ShardCount(images, captions, faults)
