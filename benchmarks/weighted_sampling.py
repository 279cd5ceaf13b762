"""Weighted sampling over 1,000,000 rows: setting it up against torch's own sampler on the same weights.

Set-up is from the table's label column to the first row of the epoch: weights, cumulative sums, the draw and the
number of each repetition. Rival: the same weights in `torch.utils.data.WeightedRandomSampler`, which knows neither
epochs nor repetitions. Rounds alternate in one process. The aim: under 2 s.

    python benchmarks/weighted_sampling.py [ROUNDS]
"""

import statistics
import sys
import time

import datasets
import numpy as np
from torch.utils.data import WeightedRandomSampler

from mmhf.data.datasets import RowDataset
from mmhf.recipe.classification import SamplingSection
from mmhf.tasks.classification import class_weights

ROWS, CLASSES = 1_000_000, 100


def seconds_to_first_row(make_sampler):
    started = time.perf_counter()
    next(iter(make_sampler()))
    return time.perf_counter() - started


def main(rounds):
    shares = 1 / np.arange(1, CLASSES + 1)
    labels = np.random.default_rng(0).choice(CLASSES, ROWS, p=shares / shares.sum())
    table = datasets.Dataset.from_dict({"label": labels}).with_format(None)
    section = SamplingSection(power=1.0)

    def ours():
        return RowDataset(table, weights=class_weights(section, table)).epoch_sampler(0)

    def rival():
        return WeightedRandomSampler(class_weights(section, table), ROWS)

    times = {"mmhf": [], "torch": []}
    for _ in range(rounds):
        times["mmhf"].append(seconds_to_first_row(ours))
        times["torch"].append(seconds_to_first_row(rival))
    own, other = (statistics.median(times[name]) for name in ("mmhf", "torch"))
    drawn = labels[[key.index for key in ours()]]
    counts = np.bincount(drawn, minlength=CLASSES)
    print(f"{ROWS:,} rows, {CLASSES} classes of {np.bincount(labels).min():,} to {np.bincount(labels).max():,} rows")
    print(f"drawn per class: {counts.min():,} to {counts.max():,} (even: {ROWS // CLASSES:,})")
    print(f"set-up: {own:.2f} s, torch's sampler {other:.2f} s; ratio {own / other:.2f}; aim under 2 s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
