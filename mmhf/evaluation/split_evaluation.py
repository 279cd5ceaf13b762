"""What evaluating one split says, whatever a model answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SplitEvaluation:
    """Numbers of one split of a model of classes, labels or numbers.

    Attributes:
        label_names (`tuple[str, ...]`): What is answered with, in the order of the outputs: classes, labels, or the
            names of numbers.
        metrics (`dict[str, float]`): Those that the protocols define; never NaN.
        undefined (`dict[str, str]`): Metrics that this split cannot define, each with the reason.
        num_rows, num_ignored (`int`): Rows that were evaluated, and that were left out because they have no label.
    """

    label_names: tuple[str, ...]
    metrics: dict[str, float]
    undefined: dict[str, str]
    num_rows: int
    num_ignored: int


def sort_out(
    found: Mapping[str, float | None],
    protocols: Mapping[str, str],
    *,
    why: str,
    reasons: Mapping[str, str] | None = None,
    loss: float | None = None,
) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics in the order of their protocols, and why the others are not defined.

    Args:
        found (`Mapping[str, float | None]`): Metric → value; None, or nothing, where there is none.
        protocols (`Mapping[str, str]`): All metrics, and `loss`.
        why (`str`): Why one is not defined.
        reasons (`Mapping[str, str]`, *optional*): Metric → a reason of its own.
        loss (`float`, *optional*): Trainer's, to stand first.
    """
    metrics: dict[str, float] = {} if loss is None else {"loss": float(loss)}
    undefined = {}
    for name in (name for name in protocols if name != "loss"):
        value = found.get(name)
        if value is not None:
            metrics[name] = value
        else:
            undefined[name] = (reasons or {}).get(name, why)
    return metrics, undefined


def label_scores(right: int, predicted: int, support: int) -> dict[str, float]:
    """Precision, recall and F1 of a label that `support` rows have and `predicted` rows are given, `right` of them
    rightly; 0 where there are no rows to divide by."""
    return {
        "precision": right / predicted if predicted else 0.0,
        "recall": right / support if support else 0.0,
        "f1": 2 * right / (support + predicted) if support + predicted else 0.0,
    }
