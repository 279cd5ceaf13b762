"""The report of a classifier of ordered classes: classes, confusions, and the rows that are furthest off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmhf.evaluation.intervals import Interval, confusion_intervals, mean_interval
from mmhf.evaluation.ordinal import ORDINAL_PROTOCOLS, OrdinalEvaluation
from mmhf.evaluation.plots import save_calibration_plots, save_class_plots
from mmhf.evaluation.report.page import Block, Card, Figure, Section, Table, Text, shown_rows
from mmhf.evaluation.report.sections import RunFacts
from mmhf.evaluation.report.target_report import GalleryWords, Measured, TargetReport
from mmhf.evaluation.report.verdict import Verdict, calibration_finding, modality_finding, verdict_beside

_COLUMNS = {
    "class": "label",
    "rows": "support",
    "predicted": "predicted",
    "precision": "precision",
    "recall": "recall",
    "F1": "f1",
    "mean difference of ranks": "mae",
}


def furthest_off(evaluation: OrdinalEvaluation, labels: NDArray[np.int64], *, count: int = 24) -> NDArray[np.int64]:
    """Positions among the evaluated rows whose expected rank is furthest from the label's, and more than half a class.

    Args:
        evaluation ([`OrdinalEvaluation`]): Of the split.
        labels (`NDArray` of shape `(N,)`): Its class ids.
        count (`int`, defaults to 24): How many at most.
    """
    distance = np.abs(evaluation.expected - labels[evaluation.rows])
    order = np.argsort(-distance, kind="stable")[:count]
    chosen: NDArray[np.int64] = order[distance[order] > 0.5]
    return chosen


def missed_rows(evaluation: OrdinalEvaluation, places: Sequence[int], rows: Iterable[Mapping[str, Any]]) -> list[Card]:
    """Rows as a person looks at them.

    Args:
        evaluation ([`OrdinalEvaluation`]): Of the split.
        places (`Sequence[int]`): Positions among the evaluated rows.
        rows (`Iterable[Mapping[str, Any]]`): The data set's rows of these, in the same order, with `id`, `image`,
            `text` and `label`.
    """
    rows, cards = list(rows), []
    for place, row, shown in zip(places, rows, shown_rows(rows), strict=True):
        name = evaluation.label_names[row["label"]]
        facts = {"expected rank": f"{evaluation.expected[place]:.2f}", "label": f"{name} ({row['label']})"}
        facts["id"] = shown["id"]
        cards.append(Card(image=shown["image"], text=shown["text"], facts=facts, wrong="expected rank"))
    return cards


class OrdinalReport(TargetReport[OrdinalEvaluation]):
    """One class a row, of classes that have an order."""

    protocols = ORDINAL_PROTOCOLS
    counted = "Rows with a label."
    left_out = "rows have no label or no readable image"
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

    def verdict(self, run: RunFacts, split: str, measured: Measured[OrdinalEvaluation]) -> Verdict | None:
        """By the metric that checkpoints were chosen by, or the mean difference of ranks."""
        evaluation = measured.evaluation
        metric = run.best_metric if run.best_metric in evaluation.metrics and run.best_metric != "loss" else "mae"
        if metric not in evaluation.metrics:
            return None
        value, intervals = evaluation.metrics[metric], confusion_intervals(evaluation.confusion)
        result = intervals.get(metric, Interval(value, value, value))
        if metric == "mae":
            distance = np.abs(np.subtract.outer(*[np.arange(len(evaluation.label_names))] * 2))
            result = mean_interval(np.repeat(distance.ravel(), evaluation.confusion.ravel()))
        size = f"{evaluation.num_rows:,} rows, {len(evaluation.label_names)} ordered classes"
        others = [name for name in ("mae", "accuracy", "f1_macro", "kappa_quadratic", "spearman") if name != metric]
        findings, steps = modality_finding(measured.modalities)
        sure, calibrate = calibration_finding(measured.calibration)
        return verdict_beside(
            run,
            split,
            metric,
            result,
            size=size,
            measured=measured,
            others=others,
            findings=[*findings, *sure],
            steps=[*steps, *calibrate],
        )


def _classes(split: str, evaluation: OrdinalEvaluation, plots: Mapping[str, Path]) -> Section:
    rows = [[row[key] for key in _COLUMNS.values()] for row in evaluation.per_class]
    blocks: list[Block] = [Table(list(_COLUMNS), rows)]
    captions = {
        "confusion_matrix": f"Confusion matrix, {split} split: rows are labels, columns answers, in their order.",
        "per_class": f"Precision, recall and F1 of each class, {split} split.",
    }
    blocks += [
        Figure(plots[f"{split}_{name}"], caption) for name, caption in captions.items() if f"{split}_{name}" in plots
    ]
    blocks.append(Text(f"The order: {' < '.join(evaluation.label_names)}.", "note"))
    return Section(f"Classes: {split}", blocks)
