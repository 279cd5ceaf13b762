"""Reliability diagram and selective-prediction curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmhf.evaluation.calibration import CalibrationEvaluation

_BAR, _OVER, _LINE, _GREY = "#2563eb", "#dc2626", "#7c3aed", "#9ca3af"


def plot_reliability(evaluation: CalibrationEvaluation, path: str | Path) -> None:
    """Draw accuracy against confidence by bin, the gap between them, and how many rows each bin has.

    Args:
        evaluation ([`CalibrationEvaluation`]): Of one split, with rows.
        path (`str` or `Path`): The PNG; parent folders are made.
    """
    figure = Figure(figsize=(5.6, 5.8), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    lows = np.array([each.low for each in evaluation.bins])
    widths = np.array([each.high - each.low for each in evaluation.bins])
    accuracies = np.array([each.accuracy for each in evaluation.bins])
    confidences = np.array([each.confidence for each in evaluation.bins])
    bars = {"align": "edge", "linewidth": 0.8}
    axes.bar(lows, accuracies, widths, color=_BAR, alpha=0.55, edgecolor=_BAR, label="accuracy", **bars)
    axes.bar(
        lows,
        confidences - accuracies,
        widths,
        bottom=accuracies,
        color=_OVER,
        alpha=0.18,
        edgecolor=_OVER,
        hatch="//",
        label="gap to confidence",
        **bars,
    )
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="perfect")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    note = f"ECE {evaluation.metrics['ece']:.3f}"
    if "ece_uncalibrated" in evaluation.metrics:
        note += f"; {evaluation.metrics['ece_uncalibrated']:.3f} before temperature {evaluation.temperature:.3g}"
    axes.set_title(note, fontsize=10)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    counts.bar(lows, [each.num_rows for each in evaluation.bins], widths, color=_GREY, align="edge")
    counts.set_ylabel("rows")
    counts.set_xlabel("confidence (probability of the prediction)")
    counts.set_xlim(0, 1)
    _save(figure, [axes, counts], path)


def plot_selective(evaluation: CalibrationEvaluation, path: str | Path) -> None:
    """Draw accuracy against the share of rows that are answered, the surest first.

    Args:
        evaluation ([`CalibrationEvaluation`]): Of one split, with rows.
        path (`str` or `Path`): The PNG; parent folders are made.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.step(evaluation.coverages, evaluation.accuracies, where="pre", color=_LINE, linewidth=1.6)
    axes.axhline(float(evaluation.accuracies[-1]), color=_GREY, linewidth=0.8, linestyle="--", label="all answered")
    if "coverage" in evaluation.metrics:
        label = f"threshold {evaluation.abstain_below:.3f}"
        axes.axvline(evaluation.metrics["coverage"], color=_OVER, linewidth=1, linestyle=":", label=label)
    axes.set_xlabel("coverage (share of the rows answered)")
    axes.set_ylabel("accuracy of the answers")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(min(0.95, float(evaluation.accuracies.min())) - 0.02, 1.02)
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    _save(figure, [axes], path)


def _save(figure: Figure, all_axes: list[Axes], path: str | Path) -> None:
    for axes in all_axes:
        axes.set_axisbelow(True)
        axes.grid(color="#e5e7eb", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
