"""The report of a model that answers with numbers: answers against labels, and the rows that it misses most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmhf.evaluation.curves import save_training_curves
from mmhf.evaluation.intervals import Interval, mean_interval
from mmhf.evaluation.plots import plot_residuals
from mmhf.evaluation.regression import REGRESSION_PROTOCOLS, RegressionEvaluation
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
    "number": "number",
    "mean absolute error": "mae",
    "root mean squared error": "rmse",
    "R²": "r2",
    "Spearman": "spearman",
    "Kendall": "kendall",
    "mean of labels": "mean",
    "their deviation": "deviation",
}


@dataclass(frozen=True)
class MeasuredRegression:
    """What evaluating one split gave.

    Attributes:
        evaluation ([`RegressionEvaluation`]): The numbers.
        missed (`Sequence[Card]`, *optional*): Rows with the largest errors; None = not looked for.
        constants (`Mapping[str, Mapping[str, float]]`): What the same answer for each row scores: the mean, and the
            median, of the training split.
        baselines (`Mapping[str, Mapping[str, float]]`): Name of a baseline → its metrics.
    """

    evaluation: RegressionEvaluation
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


def missed_rows(
    evaluation: RegressionEvaluation, places: Sequence[int], rows: Iterable[Mapping[str, Any]]
) -> list[Card]:
    """Rows as a person looks at them.

    Args:
        evaluation ([`RegressionEvaluation`]): Of the split.
        places (`Sequence[int]`): Positions among the evaluated rows.
        rows (`Iterable[Mapping[str, Any]]`): The data set's rows of these, in the same order, with `id`, `image` and
            `text`.
    """
    cards = []
    for place, shown in zip(places, shown_rows(rows), strict=True):
        answers, labels = evaluation.answers[place], evaluation.labels[place]
        facts = {
            name: f"{answer:.4g}, true {label:.4g}"
            for name, answer, label in zip(evaluation.names, answers, labels, strict=True)
        }
        facts["id"] = shown["id"]
        cards.append(Card(image=shown["image"], text=shown["text"], facts=facts, wrong=evaluation.names[0]))
    return cards


def write_regression_report(run: RunFacts, measured: Mapping[str, MeasuredRegression]) -> None:
    """Write plots, `report.html`, `evaluation.json` and, last, `metrics.json`.

    Args:
        run (`RunFacts`): The run.
        measured (`Mapping[str, MeasuredRegression]`): By split.
    """
    folder = run.folder / PLOTS_FOLDER
    plots = save_training_curves(folder, run.log_history, run.best_metric)
    for split, each in measured.items():
        if each.num_rows:
            plots[f"{split}_residuals"] = folder / f"{split}_residuals.png"
            evaluation = each.evaluation
            plot_residuals(evaluation.answers, evaluation.labels, evaluation.names, plots[f"{split}_residuals"])
    judged = judged_split(measured)
    verdict = None if judged is None else _verdict(run, *judged)
    write_report(run, regression_sections(run, measured, plots=plots), verdict)
    tables = {split: {"By number": each.evaluation.by_number} for split, each in measured.items()}
    write_numbers(run, measured, REGRESSION_PROTOCOLS, tables)


def _verdict(run: RunFacts, split: str, measured: MeasuredRegression) -> Verdict | None:
    evaluation = measured.evaluation
    metric = run.best_metric if run.best_metric in evaluation.metrics and run.best_metric != "loss" else "mae"
    if metric not in evaluation.metrics:
        return None
    value = evaluation.metrics[metric]
    result = mean_interval(evaluation.absolute_errors()) if metric == "mae" else Interval(value, value, value)
    rows, count = f"{evaluation.num_rows:,} rows", len(evaluation.names)
    size = rows if count == 1 else f"{rows}, {count} numbers"
    others = [name for name in ("mae", "rmse", "r2", "spearman") if name != metric]
    return verdict_beside(run, split, metric, result, size=size, measured=measured, others=others)


def regression_sections(
    run: RunFacts, measured: Mapping[str, MeasuredRegression], *, plots: Mapping[str, Path] | None = None
) -> list[Section]:
    """The sections of the report.

    Args:
        run (`RunFacts`): The run.
        measured (`Mapping[str, MeasuredRegression]`): By split, in the order of the columns.
        plots (`Mapping[str, Path]`, *optional*): What was drawn, by name: `SPLIT_residuals` and the like.
    """
    figures, evaluations = plots or {}, {split: each.evaluation for split, each in measured.items()}
    metrics = metrics_section(
        {split: evaluation.metrics for split, evaluation in evaluations.items()},
        REGRESSION_PROTOCOLS,
        counts={"rows": ({split: each.num_rows for split, each in evaluations.items()}, "Rows with known numbers.")},
        undefined={split: each.undefined for split, each in evaluations.items()},
        notes=ignored_notes(evaluations, "rows have no number or no readable image"),
    )
    sections = [trained_section(run), metrics, *curves_section(figures)]
    for split, each in measured.items():
        if each.num_rows:
            sections.append(_numbers(split, each, figures))
    note = "The largest errors first. Many of them can point to wrong labels."
    sections += [
        gallery_section(f"Largest errors: {split}", each.missed, note=note, nothing="There are none.")
        for split, each in measured.items()
        if each.missed is not None
    ]
    return [*sections, *closing_sections(run)]


def _numbers(split: str, measured: MeasuredRegression, plots: Mapping[str, Path]) -> Section:
    rows = [[row[key] for key in _COLUMNS.values()] for row in measured.evaluation.by_number]
    blocks: list[Block] = [Table(list(_COLUMNS), rows)]
    if f"{split}_residuals" in plots:
        caption = (
            f"Answers against labels, {split} split: on the dashed line an answer is right. Below, by how much each "
            "answer is too high or too low."
        )
        blocks.append(Figure(plots[f"{split}_residuals"], caption))
    if measured.constants:
        names = [name for name in ("mae", "rmse", "r2") if any(name in each for each in measured.constants.values())]
        beside = {"this model": measured.metrics, **measured.constants}
        same = [[name, *(metrics.get(metric) for metric in names)] for name, metrics in beside.items()]
        blocks += [Table(["answer", *names], same), Text("Beside the same answer for each row.", "note")]
    return Section(f"Answers: {split}", blocks)
