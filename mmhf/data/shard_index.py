"""How many samples each shard has, counted once and kept in the data set cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import datasets
from filelock import FileLock
from rich.console import Console
from rich.progress import track

from mmhf.data.shards import Shard, ShardFault

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
    with FileLock(folder / f"{key}.lock"), ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        counts = pool.map(lambda shard: _cached_count(shard, folder), shards)
        if len(shards) > _PROGRESS_ABOVE:
            console = Console(stderr=True)
            return list(track(counts, label, total=len(shards), console=console, transient=True))
        return list(counts)


def _cached_count(shard: Shard, folder: Path) -> ShardCount:
    version = shard.version()
    path = folder / f"{hashlib.sha256(f'{_FORMAT}{version}'.encode()).hexdigest()}.json"
    if version and path.exists():
        images, captions, faults = json.loads(path.read_text(encoding="utf-8"))
        return ShardCount(images, captions, [ShardFault(*fault) for fault in faults])
    counted = _count(shard)
    # What cannot be read now may be there again later.
    if version:
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            json.dump(counted, file)
        os.replace(file.name, path)
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
