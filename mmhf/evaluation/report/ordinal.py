"""The report of a classifier of ordered classes: classes, confusions, and the rows that are furthest off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmhf.evaluation.intervals import Interval, confusion_intervals, mean_interval
from mmhf.evaluation.ordinal import ORDINAL_PROTOCOLS, OrdinalEvaluation, rank_distances
from mmhf.evaluation.plots import save_calibration_plots, save_class_plots
from mmhf.evaluation.report.page import Card, Section, Table, Text, row_cards
from mmhf.evaluation.report.sections import drawn_figures
from mmhf.evaluation.report.target_report import GalleryWords, Measured, TargetReport

_COLUMNS = {
    "class": "label",
    "rows": "support",
    "predicted": "predicted",
    "precision": "precision",
    "recall": "recall",
    "F1": "f1",
    "mean difference of ranks": "mae",
}


def missed_rows(evaluation: OrdinalEvaluation, places: Sequence[int], rows: Iterable[Mapping[str, Any]]) -> list[Card]:
    """Rows as a person looks at them.

    Args:
        evaluation ([`OrdinalEvaluation`]): Of the split.
        places (`Sequence[int]`): Positions among the evaluated rows.
        rows (`Iterable[Mapping[str, Any]]`): The data set's rows of these, in the same order, with `id`, `image` and
            `text`.
    """
    labels, expected = evaluation.labels[places], evaluation.expected[places]
    named = [f"{evaluation.label_names[label]} ({label})" for label in labels]
    facts = [{"expected rank": f"{rank:.2f}", "label": name} for rank, name in zip(expected, named, strict=True)]
    return row_cards(rows, facts)


class OrdinalReport(TargetReport[OrdinalEvaluation]):
    """One class a row, of classes that have an order."""

    protocols = ORDINAL_PROTOCOLS
    counted = "Rows with a label."
    left_out = "rows have no label or no readable image"
    judged = ("mae", "accuracy", "f1_macro", "kappa_quadratic", "spearman", "kendall", "nll")
    named = ("mae", "accuracy", "f1_macro", "kappa_quadratic", "spearman")
    gallery = GalleryWords(
        "Furthest off",
        "Rows whose expected rank is furthest from that of the label. Many of them can point to wrong labels.",
        "None: no row is off by more than half a class.",
    )

    def tables(self, evaluation: OrdinalEvaluation) -> dict[str, Sequence[Mapping[str, Any]]]:
        return {"By class": evaluation.per_class}

    def draw(self, folder: Path, split: str, measured: Measured[OrdinalEvaluation]) -> dict[str, Path]:
        drawn = save_class_plots(folder, split, measured.evaluation)
        if measured.calibration is not None:
            drawn |= save_calibration_plots(folder, split, measured.calibration)
        return drawn

    def details(self, split: str, measured: Measured[OrdinalEvaluation], plots: Mapping[str, Path]) -> list[Section]:
        return [_classes(split, measured.evaluation, plots)]

    def size(self, evaluation: OrdinalEvaluation) -> str:
        return f"{super().size(evaluation)}, {len(evaluation.label_names)} ordered classes"

    def interval(self, evaluation: OrdinalEvaluation, metric: str) -> Interval:
        if metric == "mae":
            distances = rank_distances(len(evaluation.label_names))
            return mean_interval(np.repeat(distances.ravel(), evaluation.confusion.ravel()))
        known = confusion_intervals(evaluation.confusion)
        return known[metric] if metric in known else super().interval(evaluation, metric)


def _classes(split: str, evaluation: OrdinalEvaluation, plots: Mapping[str, Path]) -> Section:
    captions = {
        "confusion_matrix": f"Confusion matrix, {split} split: rows are labels, columns answers, in their order.",
        "per_class": f"Precision, recall and F1 of each class, {split} split.",
    }
    order = Text(f"The order: {' < '.join(evaluation.label_names)}.", "note")
    blocks = [Table.of(_COLUMNS, evaluation.per_class), *drawn_figures(plots, split, captions), order]
    return Section(f"Classes: {split}", blocks)
