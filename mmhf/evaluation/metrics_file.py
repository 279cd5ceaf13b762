"""`metrics.json`: the final numbers of a run, flat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from mmhf.files import write_json


def write_metrics(path: str | Path, by_split: Mapping[str, Mapping[str, float]]) -> None:
    """Write `{"validation_accuracy": 0.91, ...}`, atomically.

    Args:
        path (`str` or `Path`): the file, usually `metrics.json` in the run folder.
        by_split (`Mapping[str, Mapping[str, float]]`): split name -> metric name, without the split -> value. A value
            that is not finite (the loss of a diverged run) is written as null, because JSON has no NaN.
    """
    flat = {
        f"{split}_{name}": value if math.isfinite(value) else None
        for split, metrics in by_split.items()
        for name, value in _plain(metrics).items()
    }
    write_json(path, flat)


def _plain(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
