"""The picture of a learning-rate range test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

_LOSS, _SMOOTHED = "#9ca3af", "#2563eb"
_MARKS = ("#059669", "#d97706", "#7c3aed", "#dc2626")


def plot_lr_range(
    rates: ArrayLike,
    losses: ArrayLike,
    smoothed: ArrayLike,
    suggestions: Mapping[str, float],
    path: str | Path,
    *,
    title: str,
    exploded: bool = False,
) -> None:
    """Draw the loss over the learning rate, with a dashed line at each suggestion.

    Args:
        rates (`ArrayLike` of shape `(N,)`): learning rates, ascending; drawn on a log axis.
        losses, smoothed (`ArrayLike` of shape `(N,)`): the loss at each, as measured and smoothed.
        suggestions (`Mapping[str, float]`): how it was found -> learning rate.
        path (`str` or `Path`): the PNG; parent folders are made.
        title (`str`): what was tested.
        exploded (`bool`, defaults to `False`): whether the loss ended the test.
    """
    rates, losses, smoothed = np.asarray(rates), np.asarray(losses), np.asarray(smoothed)
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=_LOSS, linewidth=0.9, marker=".", markersize=4, label="loss of each step")
    axes.plot(rates, smoothed, color=_SMOOTHED, linewidth=2.2, label="smoothed")
    for (name, rate), color in zip(suggestions.items(), _MARKS, strict=False):
        height = np.interp(np.log(rate), np.log(rates), smoothed)
        axes.axvline(rate, color=color, linestyle="--", linewidth=1.1, zorder=1)
        axes.plot(rate, height, "o", color=color, markersize=8, zorder=4, label=f"{name}: {rate:.1e}")
    axes.set_xscale("log")
    axes.set_xlim(min(rates[0], *suggestions.values(), rates[-1]), rates[-1])
    axes.set_ylim(*_limits(losses))
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.set_xlabel("learning rate" + (" (the loss exploded at the right end)" if exploded else ""), fontsize=9)
    axes.set_ylabel("training loss", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#eef0f3")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})


def _limits(losses: np.ndarray) -> tuple[float, float]:
    """The range of most losses, so that an explosion in the last steps does not flatten all before it."""
    begin = float(losses[: max(len(losses) // 10, 1)].mean())
    highest = 1.5 * max(begin, float(np.median(losses)))
    low, high = float(losses.min()), min(float(np.percentile(losses, 85)), highest)
    height = max(high - low, 1e-3)
    return low - 0.05 * height, high + 0.4 * height
