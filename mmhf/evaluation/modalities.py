"""What a classifier of images, texts and columns makes of each alone, and of pairs that do not belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmhf.conventions import IGNORED_LABEL
from mmhf.evaluation.classification import classification_metrics

MODALITY_PROTOCOLS: dict[str, str] = {
    "image_only_accuracy": "Accuracy with every text taken away (the model's stand-in is in its place).",
    "text_only_accuracy": "Accuracy with every image taken away.",
    "columns_only_accuracy": "Accuracy with all but the table's columns taken away.",
    "without_columns_accuracy": "Accuracy by image and text, with the table's columns taken away.",
    "mismatched_image_accuracy": "Share of images, each with the text of another row, that get the image's own label.",
    "mismatched_text_accuracy": "Share of the same pairs that get the label of the row that the text is from.",
    "mismatched_changed": "Share of images whose prediction changes when another row's text is put beside them.",
}
"""How each number of `ModalityEvaluation.flat` is defined. All are over the rows that have a label and all that the
model reads. With columns, these are taken away in `image_only` and `text_only`, and stay where texts are exchanged."""


@dataclass(frozen=True, kw_only=True)
class ModalityEvaluation:
    """Metrics of one split by what the model was shown.

    Attributes:
        metrics (`dict[str, dict[str, float]]`): `both` (all that the model reads), `image_only`, `text_only`,
            `columns_only`, `without_columns`, `mismatched, image's label` and `mismatched, text's label` → metric →
            value; those that there are.
        changed (`float`, *optional*): Share of predictions that another row's text changes; None without texts or
            images.
        num_rows (`int`): Rows that have a label and all of these modalities.
        num_left_out (`int`): Labelled rows that lack one.
        modalities (`Sequence[str]`): What the model reads: `image`, `text`, `columns`.
    """

    metrics: dict[str, dict[str, float]]
    changed: float | None
    num_rows: int
    num_left_out: int
    modalities: Sequence[str] = ("image", "text")

    def flat(self) -> dict[str, float]:
        """The numbers that `MODALITY_PROTOCOLS` defines."""
        if not self.num_rows:
            return {}
        accuracy = {view: metrics["accuracy"] for view, metrics in self.metrics.items()}
        named = {
            f"{view}_accuracy": value
            for view, value in accuracy.items()
            if view == "without_columns" or view.endswith("_only")
        }
        if self.changed is None:
            return named
        return {
            **named,
            "mismatched_image_accuracy": accuracy["mismatched, image's label"],
            "mismatched_text_accuracy": accuracy["mismatched, text's label"],
            "mismatched_changed": self.changed,
        }


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
    modalities: Sequence[str] = ("image", "text"),
    num_left_out: int = 0,
) -> ModalityEvaluation:
    """Compare a split's predictions by what the model was shown.

    Args:
        logits (`Mapping[str, ArrayLike]`): `both`, `image_only`, ... and `mismatched` → (N, C), of rows that have all
            of the modalities.
        labels (`ArrayLike` of shape `(N,)`): Class ids; rows with -100 are excluded.
        partners (`ArrayLike` of shape `(N,)`): Row whose text was put beside each image in `mismatched`.
        label_names (`list[str]`): Names of the C classes.
        modalities (`Sequence[str]`): What the model reads.
        num_left_out (`int`): Labelled rows that lack a modality, for the report.
    """
    own, partner = np.asarray(labels), np.asarray(partners)
    judged = {view: (view, own) for view in logits if view != "mismatched"}
    if "mismatched" in logits:
        judged["mismatched, image's label"] = ("mismatched", own)
        judged["mismatched, text's label"] = ("mismatched", own[partner] if len(own) else own)
    metrics = {
        name: classification_metrics(logits[view], targets, label_names) for name, (view, targets) in judged.items()
    }
    labelled = own != IGNORED_LABEL
    changed = None
    if "mismatched" in logits:
        both, mismatched = (np.asarray(logits[view]).argmax(axis=1)[labelled] for view in ("both", "mismatched"))
        changed = float((both != mismatched).mean()) if labelled.any() else 0.0
    return ModalityEvaluation(
        metrics=metrics,
        changed=changed,
        num_rows=int(labelled.sum()),
        num_left_out=num_left_out,
        modalities=tuple(modalities),
    )
