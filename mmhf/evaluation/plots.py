"""PNG figures of an evaluation. Figures are made without pyplot, so nothing global changes and threads are safe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmhf.evaluation.calibration import CalibrationEvaluation, ReliabilityBin
from mmhf.evaluation.curves import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAME = 30
"""Characters of a class name that a plot shows; the middle of a longer one is cut."""
MAX_BARS = 50
"""Classes that a per-class plot shows: those with the lowest F1."""
_MAX_WITH_ZEROS = 15
_MAX_COUNTS = 45
_MAX_NAMED = 80
_MAX_NUMBERS, _MAX_DOTS, _MAX_GRID = 6, 5000, 30
"""Numbers and rows that a plot of residuals shows, and of how many distinct labels dots are set apart."""
BLUE, AMBER, VIOLET, RED, GREEN, GREY = "#2563eb", "#d97706", "#7c3aed", "#dc2626", "#059669", "#9ca3af"
"""What all figures are drawn in."""


class HasClasses(Protocol):
    """An evaluation of classes, ordered or not."""

    @property
    def label_names(self) -> Sequence[str]: ...

    @property
    def confusion(self) -> NDArray[np.int64]: ...

    @property
    def per_class(self) -> Sequence[Mapping[str, Any]]: ...


def save_class_plots(folder: Path, split: str, evaluation: HasClasses) -> dict[str, Path]:
    """Draw `SPLIT_confusion_matrix.png` and `SPLIT_per_class.png` of a split with rows; returns their paths."""
    paths = {f"{split}_{name}": folder / f"{split}_{name}.png" for name in ("confusion_matrix", "per_class")}
    plot_confusion_matrix(evaluation.confusion, evaluation.label_names, paths[f"{split}_confusion_matrix"])
    plot_per_class(evaluation.per_class, paths[f"{split}_per_class"])
    return paths


def save_calibration_plots(folder: Path, split: str, evaluation: CalibrationEvaluation) -> dict[str, Path]:
    """Draw `SPLIT_reliability.png` and `SPLIT_selective.png` of a split with labelled rows; returns their paths."""
    if not evaluation.bins:
        return {}
    paths = {f"{split}_{name}": folder / f"{split}_{name}.png" for name in ("reliability", "selective")}
    plot_reliability(evaluation, paths[f"{split}_reliability"])
    plot_selective(evaluation, paths[f"{split}_selective"])
    return paths


def plot_confusion_matrix(matrix: ArrayLike, label_names: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix: counts as text, the share of each label's rows as colour.

    Args:
        matrix (`ArrayLike` of shape `(C, C)`): rows are labels, columns are predictions.
        label_names (`Sequence[str]`): names of the C classes. Over 80 classes, ids stand on the axes instead.
        path (`str` or `Path`): the PNG; parent folders are made.
    """
    counts = np.asarray(matrix)
    size = len(label_names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.4 + 0.34 * size, 4.6, 17.0))
    figure = new_figure(side + 0.9, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    colorbar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, label="share of the label's rows")
    colorbar.outline.set_visible(False)
    _name_both_axes(axes, label_names)
    if size <= _MAX_COUNTS:
        _write_counts(axes, counts, shares)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    save_figure(figure, path)


def _name_both_axes(axes: Axes, label_names: Sequence[str]) -> None:
    size = len(label_names)
    if size <= _MAX_NAMED:
        fontsize = 9.0 if size <= 15 else 8.0 if size <= 40 else 6.5
        names = [shorten(name) for name in label_names]
        longest = max((len(name) for name in names), default=0)
        rotation = 0 if size <= 3 and longest <= 12 else 90
        axes.set_xticks(range(size), names, rotation=rotation, fontsize=fontsize, parse_math=False)
        axes.set_yticks(range(size), names, fontsize=fontsize, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="minor", length=0)


def _write_counts(axes: Axes, counts: NDArray[Any], shares: NDArray[Any]) -> None:
    size = len(counts)
    with_share = size <= 5
    fontsize = 11.0 if size <= 5 else 8.0 if size <= _MAX_WITH_ZEROS else 6.0
    for row, column in np.argwhere((counts > 0) | (size <= _MAX_WITH_ZEROS)):
        count, share = int(counts[row, column]), shares[row, column]
        text = f"{count:,}\n{share:.1%}" if with_share else _short_count(count)
        color = "white" if share > 0.55 else "#1f2937" if count else "#9ca3af"
        axes.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=color)


def _short_count(count: int) -> str:
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.0f}M"


def plot_per_class(table: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw precision, recall and F1 of each class, the best F1 on top; over 50 classes, the 50 lowest.

    Args:
        table (`Sequence[Mapping[str, Any]]`): rows of `classification_table`. Classes without rows are left out.
        path (`str` or `Path`): the PNG; parent folders are made.
    """
    present = sorted((row for row in table if row["support"]), key=lambda row: row["f1"])
    shown = present[:MAX_BARS]
    figure = new_figure(8.0, 1.5 + 0.26 * max(len(shown), 2))
    axes = figure.add_subplot()
    places = np.arange(len(shown))
    axes.barh(places, [row["f1"] for row in shown], color=BLUE, alpha=0.3, height=0.72, label="F1")
    for name, color, marker in (("precision", AMBER, "D"), ("recall", VIOLET, "o")):
        axes.scatter([row[name] for row in shown], places, s=20, color=color, marker=marker, label=name, zorder=3)
    names = [f"{shorten(row['label'])}  ({row['support']:,})" for row in shown]
    axes.set_yticks(places, names, fontsize=8, parse_math=False)
    axes.set_ylim(-0.6, max(len(shown), 1) - 0.4)
    axes.set_xlim(-0.02, 1.02)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#e5e7eb")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    hidden = len(present) - len(shown)
    which = f"the {len(shown)} of {len(present)} classes with the lowest F1; " if hidden else ""
    axes.set_xlabel(f"{which}in parentheses: rows of the class", fontsize=9)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)


def shorten(name: str, limit: int = MAX_NAME) -> str:
    """Cut the middle out of a name that is longer than `limit` characters, and put it on one line."""
    line = " ".join(name.split())
    if len(line) <= limit:
        return line
    tail = (limit - 1) // 2
    return f"{line[: limit - 1 - tail]}…{line[-tail:]}"


def plot_reliability(evaluation: CalibrationEvaluation, path: str | Path) -> None:
    """Draw accuracy against confidence by bin, the gap between them, and how many rows each bin has.

    Args:
        evaluation ([`CalibrationEvaluation`]): Of one split, with rows.
        path (`str` or `Path`): The PNG; parent folders are made.
    """
    figure = new_figure(5.6, 5.8)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    lows = np.array([each.low for each in evaluation.bins])
    widths = np.array([each.high - each.low for each in evaluation.bins])
    accuracies = np.array([each.accuracy for each in evaluation.bins])
    confidences = np.array([each.confidence for each in evaluation.bins])
    bars = {"align": "edge", "linewidth": 0.8}
    axes.bar(lows, accuracies, widths, color=BLUE, alpha=0.55, edgecolor=BLUE, label="accuracy", **bars)
    axes.bar(
        lows,
        confidences - accuracies,
        widths,
        bottom=accuracies,
        color=RED,
        alpha=0.18,
        edgecolor=RED,
        hatch="//",
        label="gap to confidence",
        **bars,
    )
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    note = f"ECE {evaluation.metrics['ece']:.3f}"
    if "ece_uncalibrated" in evaluation.metrics:
        note += f"; {evaluation.metrics['ece_uncalibrated']:.3f} before temperature {evaluation.temperature:.3g}"
    axes.set_title(note, fontsize=10)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    counts.bar(lows, [each.num_rows for each in evaluation.bins], widths, color=GREY, align="edge")
    counts.set_ylabel("rows")
    counts.set_xlabel("confidence (probability of the prediction)")
    counts.set_xlim(0, 1)
    frame(axes, counts)
    save_figure(figure, path)


def plot_label_reliability(panels: Mapping[str, tuple[Sequence[ReliabilityBin], float]], path: str | Path) -> None:
    """Draw the share of rows that have a label against its probability, a panel for each.

    Args:
        panels (`Mapping[str, tuple[Sequence[ReliabilityBin], float]]`): Label → its bins and its calibration error.
        path (`str` or `Path`): The PNG; parent folders are made.
    """
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = new_figure(2.3 * columns + 0.4, 2.4 * rows + 0.3)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, (bins, error)) in zip(grid, panels.items(), strict=False):
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        confidences = [each.confidence for each in bins]
        axes.plot(confidences, [each.accuracy for each in bins], color=BLUE, linewidth=1)
        total = sum(each.num_rows for each in bins)
        sizes = [8 + 80 * each.num_rows / total for each in bins]
        axes.scatter(confidences, [each.accuracy for each in bins], s=sizes, color=BLUE, alpha=0.6, zorder=3)
        axes.set_title(f"{shorten(name, 24)}  {error:.3f}", fontsize=9, parse_math=False)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([0, 0.5, 1], ["0", "0.5", "1"])
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("probability of the label", fontsize=9)
    figure.supylabel("share of rows that have it", fontsize=9)
    frame(*grid)
    save_figure(figure, path)


def plot_selective(evaluation: CalibrationEvaluation, path: str | Path) -> None:
    """Draw accuracy against the share of rows that are answered, the surest first.

    Args:
        evaluation ([`CalibrationEvaluation`]): Of one split, with rows.
        path (`str` or `Path`): The PNG; parent folders are made.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    axes.step(evaluation.coverages, evaluation.accuracies, where="pre", color=VIOLET, linewidth=1.6)
    axes.axhline(float(evaluation.accuracies[-1]), color=GREY, linewidth=0.8, linestyle="--", label="all answered")
    if "coverage" in evaluation.metrics:
        label = f"threshold {evaluation.abstain_below:.3f}"
        axes.axvline(evaluation.metrics["coverage"], color=RED, linewidth=1, linestyle=":", label=label)
    axes.set_xlabel("coverage (share of the rows answered)")
    axes.set_ylabel("accuracy of the answers")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(min(0.95, float(evaluation.accuracies.min())) - 0.02, 1.02)
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    frame(axes)
    save_figure(figure, path)


def plot_residuals(answers: ArrayLike, labels: ArrayLike, names: Sequence[str], path: str | Path) -> None:
    """Draw answers against labels, and below what is left of each label, by the answer.

    Args:
        answers, labels (`ArrayLike` of shape `(N, T)`): What the model says, and what is true.
        names (`Sequence[str]`): Of the T numbers; of more than 6 the first are drawn.
        path (`str` or `Path`): the PNG; parent folders are made.
    """
    given, true = np.asarray(answers, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    count = min(len(names), _MAX_NUMBERS)
    figure = new_figure(max(5.6 * count, 6.4), 7.2)
    panels = figure.subplots(2, count, squeeze=False, height_ratios=[2, 1], sharex="col")
    rng = np.random.default_rng(0)
    for place, name in enumerate(names[:count]):
        above, below = panels[:, place]
        answer, label = given[:, place], true[:, place]
        shown = np.sort(rng.permutation(len(label))[:_MAX_DOTS])
        alpha = float(np.clip(60 / np.sqrt(len(shown) + 1), 0.15, 0.8))
        dots = {"s": 14.0, "alpha": alpha, "color": BLUE, "linewidths": 0}
        # Whole numbers would lie on top of each other.
        width = 0.3 * float(np.min(np.diff(np.unique(label)), initial=np.ptp(label)))
        is_grid = len(np.unique(label)) <= _MAX_GRID
        spread = rng.uniform(-width, width, len(shown)) if is_grid else np.zeros(len(shown))
        above.scatter(label[shown] + spread, answer[shown], **dots)
        ends = [float(min(label.min(), answer.min())), float(max(label.max(), answer.max()))]
        above.plot(ends, ends, color=GREY, linestyle="--", linewidth=1.0)
        above.set_title(shorten(name), loc="left", parse_math=False)
        above.set_ylabel("answer")
        below.scatter(label[shown] + spread, (answer - label)[shown], **dots)
        below.axhline(0.0, color=GREY, linestyle="--", linewidth=1.0)
        below.set(xlabel="label", ylabel="answer - label")
        frame(above, below)
    save_figure(figure, path)


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
    figure = new_figure(8.0, 4.8)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=GREY, linewidth=0.9, marker=".", markersize=4, label="loss of each step")
    axes.plot(rates, smoothed, color=BLUE, linewidth=2.2, label="smoothed")
    for (name, rate), color in zip(suggestions.items(), (GREEN, AMBER, VIOLET, RED), strict=False):
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
    axes.legend(frameon=False, fontsize=9)
    frame(axes)
    save_figure(figure, path)


def _limits(losses: np.ndarray) -> tuple[float, float]:
    """The range of most losses, so that an explosion in the last steps does not flatten all before it."""
    begin = float(losses[: max(len(losses) // 10, 1)].mean())
    highest = 1.5 * max(begin, float(np.median(losses)))
    low, high = float(losses.min()), min(float(np.percentile(losses, 85)), highest)
    height = max(high - low, 1e-3)
    return low - 0.05 * height, high + 0.4 * height


def frame(*panels: Axes) -> None:
    """Grid lines behind what is drawn, and no lines above it or on its right."""
    for axes in panels:
        axes.set_axisbelow(True)
        axes.grid(color="#e5e7eb", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
