"""The report of a classifier of ordered classes: classes, confusions, and the rows that are furthest off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmhf.evaluation.curves import save_training_curves
from mmhf.evaluation.intervals import Interval, confusion_intervals, mean_interval
from mmhf.evaluation.ordinal import ORDINAL_PROTOCOLS, OrdinalEvaluation
from mmhf.evaluation.plots import plot_confusion_matrix, plot_per_class
from mmhf.evaluation.report.page import Block, Card, Figure, Section, Table, Text, shown_rows
from mmhf.evaluation.report.sections import (
    RunFacts,
    closing_sections,
    curves_section,
    gallery_section,
    ignored_notes,
    metrics_section,
    trained_section,
    write_numbers,
    write_report,
)
from mmhf.evaluation.report.verdict import Verdict, judged_split, verdict_beside
from mmhf.files import PLOTS_FOLDER

_COLUMNS = {
    "class": "label",
    "rows": "support",
    "predicted": "predicted",
    "precision": "precision",
    "recall": "recall",
    "F1": "f1",
    "mean difference of ranks": "mae",
}


@dataclass(frozen=True)
class MeasuredOrdinal:
    """What evaluating one split gave.

    Attributes:
        evaluation ([`OrdinalEvaluation`]): The numbers.
        missed (`Sequence[Card]`, *optional*): Rows that are furthest off; None = not looked for.
        constants (`Mapping[str, Mapping[str, float]]`): What the same class for each row scores: the largest of the
            training split.
        baselines (`Mapping[str, Mapping[str, float]]`): Name of a baseline → its metrics.
    """

    evaluation: OrdinalEvaluation
    missed: Sequence[Card] | None = None
    constants: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation's flat numbers."""
        return self.evaluation.metrics

    @property
    def num_rows(self) -> int:
        """Rows that were evaluated."""
        return self.evaluation.num_rows


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


def write_ordinal_report(run: RunFacts, measured: Mapping[str, MeasuredOrdinal]) -> None:
    """Write plots, `report.html`, `evaluation.json` and, last, `metrics.json`.

    Args:
        run (`RunFacts`): The run.
        measured (`Mapping[str, MeasuredOrdinal]`): By split.
    """
    folder = run.folder / PLOTS_FOLDER
    plots = save_training_curves(folder, run.log_history, run.best_metric)
    for split, each in measured.items():
        if each.num_rows:
            evaluation = each.evaluation
            plots[f"{split}_confusion_matrix"] = folder / f"{split}_confusion_matrix.png"
            plot_confusion_matrix(evaluation.confusion, evaluation.label_names, plots[f"{split}_confusion_matrix"])
            plots[f"{split}_per_class"] = folder / f"{split}_per_class.png"
            plot_per_class(evaluation.per_class, plots[f"{split}_per_class"])
    judged = judged_split(measured)
    verdict = None if judged is None else _verdict(run, *judged)
    write_report(run, ordinal_sections(run, measured, plots=plots), verdict)
    tables = {split: {"By class": each.evaluation.per_class} for split, each in measured.items()}
    write_numbers(run, measured, ORDINAL_PROTOCOLS, tables)


def _verdict(run: RunFacts, split: str, measured: MeasuredOrdinal) -> Verdict | None:
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
    return verdict_beside(run, split, metric, result, size=size, measured=measured, others=others)


def ordinal_sections(
    run: RunFacts, measured: Mapping[str, MeasuredOrdinal], *, plots: Mapping[str, Path] | None = None
) -> list[Section]:
    """The sections of the report.

    Args:
        run (`RunFacts`): The run.
        measured (`Mapping[str, MeasuredOrdinal]`): By split, in the order of the columns.
        plots (`Mapping[str, Path]`, *optional*): What was drawn, by name: `SPLIT_confusion_matrix` and the like.
    """
    figures, evaluations = plots or {}, {split: each.evaluation for split, each in measured.items()}
    metrics = metrics_section(
        {split: evaluation.metrics for split, evaluation in evaluations.items()},
        ORDINAL_PROTOCOLS,
        counts={"rows": ({split: each.num_rows for split, each in evaluations.items()}, "Rows with a label.")},
        undefined={split: each.undefined for split, each in evaluations.items()},
        notes=ignored_notes(evaluations, "rows have no label or no readable image"),
    )
    sections = [trained_section(run), metrics, *curves_section(figures)]
    for split, each in measured.items():
        if each.num_rows:
            sections.append(_classes(split, each.evaluation, figures))
    note = "Rows whose expected rank is furthest from that of the label. Many of them can point to wrong labels."
    nothing = "None: no row is off by more than half a class."
    sections += [
        gallery_section(f"Furthest off: {split}", each.missed, note=note, nothing=nothing)
        for split, each in measured.items()
        if each.missed is not None
    ]
    return [*sections, *closing_sections(run)]


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
