"""The report of a classifier of several labels a row: labels, which of them come together, and mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmhf.evaluation.label_calibration import label_bins
from mmhf.evaluation.multi_label import MULTI_LABEL_PROTOCOLS, MultiLabelEvaluation, WrongDecision
from mmhf.evaluation.plots import plot_label_reliability, plot_per_class
from mmhf.evaluation.report.page import Block, Card, Folded, Heading, Section, Table, Text, row_cards
from mmhf.evaluation.report.sections import drawn_figures
from mmhf.evaluation.report.target_report import GalleryWords, Measured, TargetReport
from mmhf.evaluation.report.verdict import LARGE_ECE, Finding, modality_finding

_MAX_OPEN_LABELS = 20
_MAX_PAIRS = 12
_MAX_PANELS = 12
_COLUMNS = {
    "label": "label",
    "rows": "support",
    "predicted": "predicted",
    "precision": "precision",
    "recall": "recall",
    "F1": "f1",
    "average precision": "average_precision",
    "ROC-AUC": "roc_auc",
    "calibration error": "ece",
    "Brier": "brier",
    "threshold": "threshold",
}


def wrong_rows(
    mistakes: Sequence[WrongDecision], rows: Iterable[Mapping[str, Any]], label_names: Sequence[str]
) -> list[Card]:
    """Put wrong decisions together with the image, text and labels of their row.

    Args:
        mistakes (`Sequence[WrongDecision]`): What `surest_mistakes` found.
        rows (`Iterable[Mapping[str, Any]]`): The data set's rows of these, in the same order, with `id`, `image`,
            `text` and `labels`.
        label_names (`Sequence[str]`): Names of the labels.
    """
    rows, facts = list(rows), []
    for mistake, row in zip(mistakes, rows, strict=True):
        own = [name for name, has_it in zip(label_names, row["labels"], strict=True) if has_it]
        way = "missed" if mistake.has_it else "wrongly given"
        wrong = f"{label_names[mistake.label]} {way} ({mistake.probability:.1%})"
        facts.append({"wrong": wrong, "labels": ", ".join(own) or "none"})
    return row_cards(rows, facts)


class MultiLabelReport(TargetReport[MultiLabelEvaluation]):
    """Any number of labels a row."""

    protocols = MULTI_LABEL_PROTOCOLS
    counted = "Rows with known labels."
    left_out = "rows have no labels or no readable image"
    judged = ("map", "f1_micro")
    named = ("map", "f1_micro", "f1_macro", "f1_samples")
    gallery = GalleryWords(
        "Most confident mistakes",
        "For each row the surest wrong decision. Many of them can point to labels that are missing in the data.",
        "None: every decision is right.",
    )

    def tables(self, evaluation: MultiLabelEvaluation) -> dict[str, Sequence[Mapping[str, Any]]]:
        return {"By class": evaluation.per_class}

    def draw(self, folder: Path, split: str, measured: Measured[MultiLabelEvaluation]) -> dict[str, Path]:
        evaluation = measured.evaluation
        paths = {f"{split}_{name}": folder / f"{split}_{name}.png" for name in ("per_class", "label_reliability")}
        plot_per_class(evaluation.per_class, paths[f"{split}_per_class"])
        panels = {"all labels": (label_bins(evaluation.bins.sum(axis=1)), evaluation.metrics["ece"])}
        worst = sorted(enumerate(evaluation.per_class), key=lambda row: -row[1]["ece"])[: _MAX_PANELS - 1]
        for at, row in worst:
            panels[row["label"]] = (label_bins(evaluation.bins[:, at]), row["ece"])
        plot_label_reliability(panels, paths[f"{split}_label_reliability"])
        return paths

    def details(
        self, split: str, measured: Measured[MultiLabelEvaluation], plots: Mapping[str, Path]
    ) -> list[Section]:
        return [_labels(split, measured, plots), _together(split, measured.evaluation)]

    def notes(self, evaluations: Mapping[str, MultiLabelEvaluation]) -> list[str]:
        notes = super().notes(evaluations)
        fitted = any(row["threshold"] != 0.5 for each in evaluations.values() for row in each.per_class)
        if fitted and "validation" in evaluations:
            notes.append("Thresholds were fitted on the validation split, whose F1 is therefore a little too good.")
        return notes

    def size(self, evaluation: MultiLabelEvaluation) -> str:
        return f"{super().size(evaluation)}, {len(evaluation.per_class)} labels"

    def findings(self, measured: Measured[MultiLabelEvaluation], metric: str) -> tuple[list[Finding], list[str]]:
        evaluation = measured.evaluation
        findings, steps = modality_finding(measured.modalities)
        never = [row["label"] for row in evaluation.per_class if row["support"] and not row["predicted"]]
        if never:
            findings.append(Finding(f"{len(never)} of {len(evaluation.per_class)} labels are never predicted.", "bad"))
            steps.append("loss.class_weights: balanced, or loss.asymmetric: {}, for the rare labels.")
        if evaluation.metrics["ece"] > LARGE_ECE:
            findings.append(
                Finding(f"Its probabilities are off by {evaluation.metrics['ece']:.4f} on average.", "bad")
            )
            if evaluation.temperature == 1:
                steps.append("evaluation.calibrate: true, for probabilities that hold.")
        return findings, steps


def _labels(split: str, measured: Measured[MultiLabelEvaluation], plots: Mapping[str, Path]) -> Section:
    rows = measured.evaluation.per_class
    numbers = Table.of(_COLUMNS, rows)
    is_long = len(rows) > _MAX_OPEN_LABELS
    opened = Folded(f"Numbers of each label ({len(rows)} labels)", numbers) if is_long else numbers
    figures = drawn_figures(plots, split, {"per_class": f"Precision, recall and F1 of each label, {split} split."})
    note = Text("A label is predicted where its probability reaches its threshold.", "note")
    return Section(f"Labels: {split}", [opened, *figures, note])


def _together(split: str, evaluation: MultiLabelEvaluation) -> Section:
    """Which labels come together."""
    counts, names = np.triu(evaluation.together, 1), evaluation.label_names
    rows: list[list[object]] = []
    for at in np.argsort(-counts, axis=None, kind="stable")[:_MAX_PAIRS].tolist():
        one, other = divmod(at, len(names))
        if both := int(counts[one, other]):
            alone = [int(evaluation.together[each, each]) for each in (one, other)]
            rows.append([names[one], names[other], both, *(f"{both / each:.1%}" for each in alone)])
    blocks: list[Block] = [Text("No row has two labels.", "nothing")]
    if rows:
        blocks = [Heading("Most frequent pairs")]
        blocks.append(Table(["label", "other label", "rows", "of the label's rows", "of the other's"], rows))
    return Section(f"Labels together: {split}", blocks)
