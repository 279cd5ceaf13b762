"""PNG figures of an evaluation. Figures are made without pyplot, so nothing global changes and threads are safe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from mmhf.evaluation.classification import ClassificationEvaluation
from mmhf.evaluation.log_series import has_values
from mmhf.evaluation.training_curves import plot_training_curves

MAX_NAME = 30
"""Characters of a class name that a plot shows; the middle of a longer one is cut."""
MAX_BARS = 50
"""Classes that a per-class plot shows: those with the lowest F1."""
_MAX_WITH_ZEROS = 15
_MAX_COUNTS = 45
_MAX_NAMED = 80
_PRECISION, _RECALL, _F1 = "#d97706", "#7c3aed", "#2563eb"


def save_classification_plots(
    folder: str | Path,
    evaluations: Mapping[str, ClassificationEvaluation],
    *,
    log_history: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Path]:
    """Draw all figures of a run into its `plots` folder.

    Args:
        folder (`str` or `Path`): where the PNGs go; made if absent.
        evaluations (`Mapping[str, ClassificationEvaluation]`): by split.
        log_history (`Sequence[Mapping[str, Any]]`, *optional*): Trainer's; empty = no training curves.

    Returns:
        `dict[str, Path]`: `training_curves`, `SPLIT_confusion_matrix` and `SPLIT_per_class` -> PNG. A split without
        labelled rows has none, nor has a log without numbers.
    """
    folder = Path(folder)
    paths = {}
    if has_values(log_history):
        paths["training_curves"] = folder / "training_curves.png"
        plot_training_curves(log_history, paths["training_curves"])
    for split, evaluation in evaluations.items():
        if not evaluation.num_rows:
            continue
        paths[f"{split}_confusion_matrix"] = folder / f"{split}_confusion_matrix.png"
        plot_confusion_matrix(evaluation.confusion, evaluation.label_names, paths[f"{split}_confusion_matrix"])
        paths[f"{split}_per_class"] = folder / f"{split}_per_class.png"
        plot_per_class(evaluation.per_class, paths[f"{split}_per_class"])
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
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    colorbar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, label="share of the label's rows")
    colorbar.outline.set_visible(False)
    _name_both_axes(axes, label_names)
    if size <= _MAX_COUNTS:
        _write_counts(axes, counts, shares)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    _save(figure, path)


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
    figure = Figure(figsize=(8.0, 1.5 + 0.26 * max(len(shown), 2)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(shown))
    axes.barh(places, [row["f1"] for row in shown], color=_F1, alpha=0.3, height=0.72, label="F1")
    for name, color, marker in (("precision", _PRECISION, "D"), ("recall", _RECALL, "o")):
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
    _save(figure, path)


def shorten(name: str, limit: int = MAX_NAME) -> str:
    """Cut the middle out of a name that is longer than `limit` characters, and put it on one line."""
    line = " ".join(name.split())
    if len(line) <= limit:
        return line
    tail = (limit - 1) // 2
    return f"{line[: limit - 1 - tail]}…{line[-tail:]}"


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
