"""The report of a classifier: classes, confusions, mistakes, and what stands behind its accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmhf.evaluation.classification import PROTOCOLS, ClassificationEvaluation, Mistake
from mmhf.evaluation.curves import METRIC_TITLES
from mmhf.evaluation.intervals import Interval, confusion_intervals
from mmhf.evaluation.plots import save_calibration_plots, save_class_plots
from mmhf.evaluation.report.page import Block, Card, Folded, Heading, Matrix, Section, Table, Text, row_cards
from mmhf.evaluation.report.sections import drawn_figures
from mmhf.evaluation.report.target_report import GalleryWords, Measured, TargetReport
from mmhf.evaluation.report.verdict import Finding

_MAX_OPEN_CLASSES = 12
_MAX_MATRIX_CLASSES = 60
_MAX_CONFUSIONS = 12


def mistake_cards(
    mistakes: Sequence[Mistake], rows: Iterable[Mapping[str, Any]], label_names: Sequence[str]
) -> list[Card]:
    """Put mistakes together with their image and text.

    Args:
        mistakes (`Sequence[Mistake]`): what `most_confident_mistakes` found.
        rows (`Iterable[Mapping[str, Any]]`): the data set's rows of these mistakes, in the same order, as `row_cards`
            takes them: `dataset.select([mistake.index for mistake in mistakes])`.
        label_names (`Sequence[str]`): names of the classes.
    """
    facts = [
        {
            "predicted": label_names[mistake.prediction],
            "label": label_names[mistake.label],
            "confidence": f"{mistake.confidence:.1%}",
        }
        for mistake in mistakes
    ]
    return row_cards(rows, facts)


class ClassificationReport(TargetReport[ClassificationEvaluation]):
    """One class a row."""

    protocols = PROTOCOLS
    counted = "Rows with a label."
    left_out = "rows have no label or no readable image"
    judged = ("accuracy", "f1_macro")
    gallery = GalleryWords(
        "Most confident mistakes",
        "Wrong predictions with the highest softmax probability. Many of them can point to wrong labels.",
        "None: every prediction is right.",
    )

    def tables(self, evaluation: ClassificationEvaluation) -> dict[str, Sequence[Mapping[str, Any]]]:
        return {"By class": evaluation.per_class}

    def draw(self, folder: Path, split: str, measured: Measured[ClassificationEvaluation]) -> dict[str, Path]:
        drawn = save_class_plots(folder, split, measured.evaluation)
        if measured.calibration is not None:
            drawn |= save_calibration_plots(folder, split, measured.calibration)
        return drawn

    def details(
        self, split: str, measured: Measured[ClassificationEvaluation], plots: Mapping[str, Path]
    ) -> list[Section]:
        return [_classes(split, measured.evaluation, plots), _confusions(split, measured.evaluation, plots)]

    def interval(self, evaluation: ClassificationEvaluation, metric: str) -> Interval:
        return confusion_intervals(evaluation.confusion)[metric]

    def findings(self, measured: Measured[ClassificationEvaluation], metric: str) -> tuple[list[Finding], list[str]]:
        evaluation, other = measured.evaluation, "f1_macro" if metric == "accuracy" else "accuracy"
        second = self.interval(evaluation, other)
        findings = [Finding(f"{METRIC_TITLES[other]} is {second.value:.4f} ({second.low:.4f} to {second.high:.4f}).")]
        steps = []
        accuracy, macro = (evaluation.metrics[name] for name in ("accuracy", "f1_macro"))
        seen = [row for row in evaluation.per_class if row["support"]]
        weak = [row["support"] for row in seen if row["f1"] < 0.5 * accuracy]
        if accuracy - macro > 0.1 and weak:
            is_rare = min(weak) < sum(row["support"] for row in seen) / len(seen)
            which, classes = "Rare classes" if is_rare else "Classes", f"{len(weak)} class{'es' * (len(weak) != 1)}"
            findings.append(Finding(f"{which} are missed: F1 of {classes} is below half the accuracy.", "bad"))
            if is_rare:
                steps.append("loss.class_weights: balanced, or loss.logit_adjustment: 1, for the rare classes.")
        usual, usual_steps = super().findings(measured, metric)
        return [*findings, *usual], [*steps, *usual_steps]


def _classes(split: str, evaluation: ClassificationEvaluation, plots: Mapping[str, Path]) -> Section:
    columns = {
        "class": "label",
        "rows": "support",
        "precision": "precision",
        "recall": "recall",
        "F1": "f1",
        "ROC-AUC": "roc_auc",
        "average precision": "average_precision",
    }
    numbers = Table.of(columns, evaluation.per_class)
    figures = drawn_figures(plots, split, {"per_class": f"Precision, recall and F1 of each class, {split} split."})
    note = Text("ROC-AUC and average precision are of the class against the rest.", "note")
    opened = _open_or_folded("Numbers of each class", numbers, len(evaluation.label_names))
    return Section(f"Classes: {split}", [opened, *figures, note])


def _confusions(split: str, evaluation: ClassificationEvaluation, plots: Mapping[str, Path]) -> Section:
    size = len(evaluation.label_names)
    caption = f"Confusion matrix, {split} split: rows are labels, columns predictions."
    blocks = drawn_figures(plots, split, {"confusion_matrix": caption})
    if size > 2:
        blocks += [Heading("Most frequent confusions"), _frequent_confusions(evaluation)]
    if size <= _MAX_MATRIX_CLASSES:
        counts = Matrix(evaluation.confusion.tolist(), evaluation.label_names)
        blocks.append(_open_or_folded("Counts", counts, size))
    return Section(f"Confusion matrix: {split}", blocks)


def _frequent_confusions(evaluation: ClassificationEvaluation) -> Block:
    counts, names = evaluation.confusion, evaluation.label_names
    wrong = counts - np.diag(np.diag(counts))
    rows = []
    for at in np.argsort(-wrong, axis=None, kind="stable")[:_MAX_CONFUSIONS].tolist():
        label, prediction = divmod(at, len(names))
        if wrong[label, prediction]:
            share = float(counts[label, prediction] / counts[label].sum())
            rows.append([names[label], names[prediction], int(wrong[label, prediction]), f"{share:.1%}"])
    if not rows:
        return Text("None: every prediction is right.", "nothing")
    return Table(["label", "predicted as", "rows", "of the label's rows"], rows)


def _open_or_folded(title: str, block: Table | Matrix, size: int) -> Block:
    return block if size <= _MAX_OPEN_CLASSES else Folded(f"{title} ({size} classes)", block)
