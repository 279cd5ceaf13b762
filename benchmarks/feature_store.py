"""Random batches from a feature store against a bare NumPy memory map, and the time and memory to open a large one.

Writes 1,000,000 rows of 1,280 half-precision features (2.6 GB) into a temporary folder. The aims: at least half the
memory map's speed, open within 1 s and 200 MB.

    python benchmarks/feature_store.py [ROWS]
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mmhf.features.store import FeatureLayout, FeatureStore

WIDTH = 1280
BATCH = 32
ROUNDS = 20
BATCHES = 200


def fill(folder, num_rows):
    rng = np.random.default_rng(0)
    digests = np.frombuffer(rng.bytes(16 * num_rows), dtype="V16")
    store = FeatureStore(folder, FeatureLayout((WIDTH,), torch.float16))
    for start in range(0, num_rows, 10_000):
        chunk = digests[start : start + 10_000]
        store.append(chunk, torch.randn(len(chunk), WIDTH).half())
    return digests


def seconds(read, batches):
    begun = time.perf_counter()
    for batch in batches:
        read(batch)
    return time.perf_counter() - begun


def main(num_rows=1_000_000):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fill(folder, num_rows)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        store = FeatureStore(folder, FeatureLayout((WIDTH,), torch.float16))
        opened = time.perf_counter() - begun
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"{num_rows:,} rows open in {opened:.2f} s and {grown:.0f} MiB")
        plain = np.memmap(next(folder.glob("*.features")), dtype=np.float16, mode="r", shape=(num_rows, WIDTH))
        rng = np.random.default_rng(1)
        times = {"store": [], "memory map": []}
        for _ in range(ROUNDS):
            batches = rng.integers(0, num_rows, (BATCHES, BATCH))
            times["memory map"].append(seconds(lambda rows: torch.from_numpy(plain[rows]), batches))
            times["store"].append(seconds(store.read, batches))
        ratio = np.median(times["memory map"]) / np.median(times["store"])
        row = np.median(times["store"]) / BATCHES / BATCH * 1e6
        print(f"random batches of {BATCH}: {row:.1f} us a row, {ratio:.2f} times the speed of a memory map")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
