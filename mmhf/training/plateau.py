"""When a metric has stalled, read from the log history, so that a resumed run decides the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmhf.errors import InputError
from mmhf.recipe.schema import PlateauSection
from mmhf.recipe.training_sections import greater_is_better


def stalled(scores: Iterable[float], settings: PlateauSection) -> bool:
    """Whether the last `patience` scores (higher is better) brought no improvement of more than `min_delta`."""
    best = float("-inf")
    without_improvement = 0
    for score in scores:
        if score > best + settings.min_delta or best == float("-inf"):
            best = score
            without_improvement = 0
        else:
            without_improvement += 1
    return without_improvement >= settings.patience


def metric_key(metric: str, metrics: Iterable[str], *, setting: str) -> str:
    """Trainer's name of a metric that a recipe names.

    Raises:
        InputError: It is not measured; the message lists what is.
    """
    key = f"eval_{metric.removeprefix('eval_')}"
    if key not in metrics:
        known = ", ".join(sorted(name.removeprefix("eval_") for name in metrics if name.startswith("eval_")))
        raise InputError(f"{setting}: {metric!r} is not measured; choose {known}")
    return key


def scores_since(log_history: Sequence[dict[str, Any]], key: str, global_step: int) -> dict[int, float]:
    """Step → score (higher is better) of a metric, of the evaluations after a global step."""
    sign = 1.0 if greater_is_better(key) else -1.0
    return {entry["step"]: sign * entry[key] for entry in log_history if key in entry and entry["step"] > global_step}
