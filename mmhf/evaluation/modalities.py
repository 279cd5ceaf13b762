"""What a model of images, texts and columns makes of each alone, and of pairs that do not belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmhf.evaluation.classification import classification_metrics
from mmhf.evaluation.curves import METRIC_TITLES

_SHOWN = {
    "image_only": "with every text taken away (the model's stand-in is in its place)",
    "text_only": "with every image taken away",
    "columns_only": "with all but the table's columns taken away",
    "without_columns": "by image and text, with the table's columns taken away",
    "mismatched_image": "of images, each with the text of another row, by the image's own label",
    "mismatched_text": "of the same pairs, by the label of the row that the text is from",
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the answers of one kind of target are compared.

    Attributes:
        metrics (`Sequence[str]`): Those that are shown; the first one decides.
        measure (`Callable`): From logits (N, C), labels and the names of the outputs to metrics.
        apart (`Callable`): How far the answers of (N, C) logits are from those of others, (N,) or (N, C).
        changes (`str`): What their mean is called in a sentence about another row's text.
        changed (`str`): Its definition.
    """

    metrics: Sequence[str]
    measure: Callable[[Any, Any, list[str]], Mapping[str, float]]
    apart: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
    changes: str
    changed: str


CLASS_COMPARISON = Comparison(
    metrics=("accuracy", "f1_macro", "roc_auc"),
    measure=classification_metrics,
    apart=lambda one, other: one.argmax(axis=1) != other.argmax(axis=1),
    changes="changes {:.1%} of the predictions",
    changed="Share of images whose prediction changes when another row's text is put beside them.",
)


@dataclass(frozen=True, kw_only=True)
class ModalityEvaluation:
    """Metrics of one split by what the model was shown.

    Attributes:
        metrics (`dict[str, Mapping[str, float]]`): `both` (all that the model reads), `image_only`, `text_only`,
            `columns_only`, `without_columns`, `mismatched, image's label` and `mismatched, text's label` → metric →
            value; those that there are.
        changed (`float`, *optional*): Mean distance between answers that another row's text makes; None without texts
            or images.
        num_rows (`int`): Rows that have a label and all of these modalities.
        num_left_out (`int`): Labelled rows that lack one.
        modalities (`Sequence[str]`): What the model reads: `image`, `text`, `columns`.
        comparison ([`Comparison`]): How answers were compared.
    """

    metrics: dict[str, Mapping[str, float]]
    changed: float | None
    num_rows: int
    num_left_out: int
    modalities: Sequence[str] = ("image", "text")
    comparison: Comparison = CLASS_COMPARISON

    @property
    def metric(self) -> str:
        """The one that decides."""
        return self.comparison.metrics[0]

    def flat(self) -> dict[str, float]:
        """The numbers that `protocols` defines."""
        named = {}
        for view, metrics in self.metrics.items() if self.num_rows else ():
            short = view.removesuffix("'s label").replace(", ", "_")
            if short in _SHOWN and self.metric in metrics:
                named[f"{short}_{self.metric}"] = metrics[self.metric]
        return named if self.changed is None or not named else {**named, "mismatched_changed": self.changed}

    @property
    def protocols(self) -> dict[str, str]:
        """How each number of `flat` is defined. All are over the rows that have a label and all that the model reads.
        With columns, these are taken away in `image_only` and `text_only`, and stay where texts are exchanged."""
        title = METRIC_TITLES[self.metric]
        defined = {f"{view}_{self.metric}": f"{title} {shown}." for view, shown in _SHOWN.items()}
        defined["mismatched_changed"] = self.comparison.changed
        return {name: defined[name] for name in self.flat()}


def other_rows(num_rows: int, *, seed: int = 0) -> NDArray[np.int64]:
    """For each row another one, each being taken once: a random cycle through all rows, (N,)."""
    order = np.random.default_rng(seed).permutation(num_rows)
    partners = np.empty(num_rows, dtype=np.int64)
    partners[order] = np.roll(order, -1)
    return partners


def evaluate_modalities(
    logits: Mapping[str, ArrayLike],
    labels: ArrayLike,
    partners: ArrayLike,
    label_names: list[str],
    *,
    comparison: Comparison = CLASS_COMPARISON,
    modalities: Sequence[str] = ("image", "text"),
    num_left_out: int = 0,
) -> ModalityEvaluation:
    """Compare a split's predictions by what the model was shown.

    Args:
        logits (`Mapping[str, ArrayLike]`): `both`, `image_only`, ... and `mismatched` → (N, C), of rows that have a
            label and all of the modalities.
        labels (`ArrayLike` of shape `(N,)` or `(N, C)`): Those of the rows.
        partners (`ArrayLike` of shape `(N,)`): Row whose text was put beside each image in `mismatched`.
        label_names (`list[str]`): Names of the C outputs.
        comparison ([`Comparison`]): How answers are compared; absent: as those of one class a row.
        modalities (`Sequence[str]`): What the model reads.
        num_left_out (`int`): Labelled rows that lack a modality, for the report.
    """
    own, partner = np.asarray(labels), np.asarray(partners)
    judged = {view: (view, own) for view in logits if view != "mismatched"}
    changed = None
    if "mismatched" in logits:
        judged["mismatched, image's label"] = ("mismatched", own)
        judged["mismatched, text's label"] = ("mismatched", own[partner] if len(own) else own)
        apart = comparison.apart(np.asarray(logits["both"]), np.asarray(logits["mismatched"]))
        changed = float(apart.mean()) if len(own) else 0.0
    return ModalityEvaluation(
        metrics={
            name: comparison.measure(logits[view], targets, label_names) for name, (view, targets) in judged.items()
        },
        changed=changed,
        num_rows=len(own),
        num_left_out=num_left_out,
        modalities=tuple(modalities),
        comparison=comparison,
    )
