"""Which way a metric is better: one table for checkpoints, plateaus, sweeps and releases."""

from __future__ import annotations

_LOWER_IS_BETTER = (
    "loss",
    "error",
    "perplexity",
    "median_rank",
    "mean_rank",
    "alignment",
    "uniformity",
    "ece",
    "ece_uncalibrated",
    "nll",
    "brier",
    "aurc",
    "gap",
)


def greater_is_better(metric: str) -> bool:
    """Whether more of a metric is better.

    Args:
        metric (`str`): Its name; more may stand before it, behind `_`: `eval_loss`, `test_image_uniformity`.
    """
    return not f"_{metric}".endswith(tuple(f"_{name}" for name in _LOWER_IS_BETTER))
