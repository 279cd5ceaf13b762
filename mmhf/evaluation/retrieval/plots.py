"""PNG figures of an evaluation by retrieval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmhf.evaluation.curves import new_figure, save_figure, save_training_curves
from mmhf.evaluation.plots import AMBER, BLUE, GREEN, GREY, RED, VIOLET, frame, shorten
from mmhf.evaluation.retrieval.embedding_view import EmbeddingPlane, EmbeddingView
from mmhf.evaluation.retrieval.metrics import RetrievalEvaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GROUPS = (BLUE, AMBER, GREEN, RED, VIOLET, "#0891b2", "#be185d", "#4d7c0f", "#78350f")
"""Colours of a column's values; those that there are more of are grey together."""


def save_retrieval_plots(
    folder: str | Path,
    evaluations: Mapping[str, RetrievalEvaluation],
    *,
    views: Mapping[str, EmbeddingView] | None = None,
    log_history: Sequence[Mapping[str, Any]] = (),
    best_metric: str | None = None,
) -> dict[str, Path]:
    """Draw all figures of a run into its `plots` folder.

    Args:
        folder (`str` or `Path`): where the PNGs go; made if absent.
        evaluations (`Mapping[str, RetrievalEvaluation]`): by split.
        views (`Mapping[str, EmbeddingView]`, *optional*): the embeddings of some splits, to look at.
        log_history (`Sequence[Mapping[str, Any]]`, *optional*): Trainer's; empty = no training curves.
        best_metric (`str`, *optional*): what checkpoints were chosen by.

    Returns:
        `dict[str, Path]`: `training_curves`, `SPLIT_recall` and `SPLIT_embeddings` -> PNG.
    """
    folder = Path(folder)
    paths = save_training_curves(folder, log_history, best_metric)
    for split, evaluation in evaluations.items():
        paths[f"{split}_recall"] = folder / f"{split}_recall.png"
        plot_recall(evaluation, paths[f"{split}_recall"])
    for split, view in (views or {}).items():
        paths[f"{split}_embeddings"] = folder / f"{split}_embeddings.png"
        plot_embeddings(view, paths[f"{split}_embeddings"])
    return paths


def plot_recall(evaluation: RetrievalEvaluation, path: str | Path) -> None:
    """Draw recall over the number of results looked at, from 1 to all, with chance dashed.

    Args:
        evaluation (`RetrievalEvaluation`): one split's.
        path (`str` or `Path`): the PNG; parent folders are made.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    captions, images = len(evaluation.captions), evaluation.num_images
    for name, color, ranks, candidates, right in (
        ("image to text", BLUE, evaluation.first_caption_ranks, captions, captions / len(evaluation.queries)),
        ("text to image", AMBER, evaluation.image_ranks, images, 1.0),
    ):
        looked_at = np.unique(np.geomspace(1, candidates, 200).astype(np.int64))
        share = np.searchsorted(np.sort(ranks), looked_at, side="right") / len(ranks)
        axes.plot(looked_at, share, color=color, label=name)
        chance = 1 - (1 - looked_at / candidates) ** right
        axes.plot(looked_at, chance, color=color, linestyle="--", linewidth=0.8)
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="results looked at (k)", ylabel="recall@k; dashed: by chance")
    axes.legend(frameon=False, loc="upper left")
    frame(axes)
    save_figure(figure, path)


def plot_embeddings(view: EmbeddingView, path: str | Path) -> None:
    """Draw image and text embeddings in two dimensions, coloured by modality and, in a panel each, by some columns.

    Args:
        view (`EmbeddingView`): One split's.
        path (`str` or `Path`): The PNG; parent folders are made.
    """
    panels = 1 + len(view.groups)
    columns = min(panels, 2)
    figure = new_figure(5.6 * columns, 5.0 * -(-panels // columns))
    first, *others = figure.subplots(-(-panels // columns), columns, squeeze=False).ravel()
    size = float(np.clip(4000 / len(view.rows), 5, 28))
    style: dict[str, float] = {"s": size, "linewidths": 0}
    first.scatter(*view.joint.images.T, color=BLUE, alpha=0.5, label="image", **style)
    first.scatter(*view.joint.texts.T, color=AMBER, alpha=0.5, label="text", marker="^", **style)
    _finish(first, "by modality", view.joint)
    for axes, (column, values) in zip(others, view.groups.items(), strict=False):
        for name, color, chosen in _colored(values):
            axes.scatter(*view.centred.images[chosen].T, color=color, alpha=0.6, label=name, **style)
            axes.scatter(*view.centred.texts[chosen].T, color=color, alpha=0.6, marker="^", **style)
        _finish(axes, f"by {column}, each modality around its mean (▲ text)", view.centred)
    for axes in others[len(view.groups) :]:
        axes.set_visible(False)
    save_figure(figure, path)


def _colored(values: Sequence[str]) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Name, colour and places of each group, the largest first, so that small ones are drawn above it."""
    given = np.asarray(values, dtype=object)
    groups = [name for name, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))]
    shown = groups[: len(_GROUPS)]
    colored = [(shorten(name), color, given == name) for name, color in zip(shown, _GROUPS, strict=False)]
    if len(groups) > len(shown):
        rest = ~np.isin(given, shown)
        colored.insert(0, (f"{len(groups) - len(shown):,} others", GREY, rest))
    return colored


def _finish(axes: Axes, title: str, plane: EmbeddingPlane) -> None:
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    axes.set_xlabel(f"first component ({plane.variances[0]:.0%} of the variance)", fontsize=9)
    axes.set_ylabel(f"second ({plane.variances[1]:.0%})", fontsize=9)
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, markerscale=1.6, framealpha=0.8, edgecolor="none")
    frame(axes)
