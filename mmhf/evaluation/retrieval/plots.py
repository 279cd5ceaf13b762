"""Figures of a retrieval evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mmhf.evaluation.log_series import has_values
from mmhf.evaluation.retrieval.metrics import RetrievalEvaluation
from mmhf.evaluation.training_curves import plot_training_curves

_COLOURS = {"image to text": "#2563eb", "text to image": "#d97706"}


def save_retrieval_plots(
    folder: str | Path,
    evaluations: Mapping[str, RetrievalEvaluation],
    *,
    log_history: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Path]:
    """Draw all figures of a run into its `plots` folder.

    Args:
        folder (`str` or `Path`): where the PNGs go; made if absent.
        evaluations (`Mapping[str, RetrievalEvaluation]`): by split.
        log_history (`Sequence[Mapping[str, Any]]`, *optional*): Trainer's; empty = no training curves.

    Returns:
        `dict[str, Path]`: `training_curves` and `SPLIT_recall` -> PNG.
    """
    folder = Path(folder)
    paths = {}
    if has_values(log_history):
        paths["training_curves"] = folder / "training_curves.png"
        plot_training_curves(log_history, paths["training_curves"])
    for split, evaluation in evaluations.items():
        paths[f"{split}_recall"] = folder / f"{split}_recall.png"
        plot_recall(evaluation, paths[f"{split}_recall"])
    return paths


def plot_recall(evaluation: RetrievalEvaluation, path: str | Path) -> None:
    """Draw recall over the number of results looked at, from 1 to all, with chance dashed.

    Args:
        evaluation (`RetrievalEvaluation`): one split's.
        path (`str` or `Path`): the PNG; parent folders are made.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    captions, images = len(evaluation.captions), evaluation.num_images
    for name, ranks, candidates, right in (
        ("image to text", evaluation.first_caption_ranks, captions, captions / len(evaluation.queries)),
        ("text to image", evaluation.image_ranks, images, 1.0),
    ):
        looked_at = np.unique(np.geomspace(1, candidates, 200).astype(np.int64))
        axes.plot(looked_at, _share_within(ranks, looked_at), color=_COLOURS[name], label=name)
        chance = 1 - (1 - looked_at / candidates) ** right
        axes.plot(looked_at, chance, color=_COLOURS[name], linestyle="--", linewidth=0.8)
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="results looked at (k)", ylabel="recall@k; dashed: by chance")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def _share_within(ranks: NDArray[np.int64], limits: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.searchsorted(np.sort(ranks), limits, side="right") / len(ranks)
