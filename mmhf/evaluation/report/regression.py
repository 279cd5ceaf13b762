"""The report of a model that answers with numbers: answers against labels, and the rows that it misses most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmhf.evaluation.intervals import Interval, mean_interval
from mmhf.evaluation.plots import plot_residuals
from mmhf.evaluation.regression import REGRESSION_PROTOCOLS, RegressionEvaluation
from mmhf.evaluation.report.page import Card, Section, Table, Text, row_cards
from mmhf.evaluation.report.sections import drawn_figures
from mmhf.evaluation.report.target_report import GalleryWords, Measured, TargetReport

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
    pairs = zip(evaluation.answers[places], evaluation.labels[places], strict=True)
    facts = [
        {
            name: f"{answer:.4g}, true {label:.4g}"
            for name, answer, label in zip(evaluation.label_names, answers, labels, strict=True)
        }
        for answers, labels in pairs
    ]
    return row_cards(rows, facts)


class RegressionReport(TargetReport[RegressionEvaluation]):
    """Numbers, one a row or several."""

    protocols = REGRESSION_PROTOCOLS
    counted = "Rows with known numbers."
    left_out = "rows have no number or no readable image"
    judged = ("mae", "rmse", "r2", "spearman", "kendall")
    named = ("mae", "rmse", "r2", "spearman")
    gallery = GalleryWords(
        "Largest errors", "The largest errors first. Many of them can point to wrong labels.", "There are none."
    )

    def tables(self, evaluation: RegressionEvaluation) -> dict[str, Sequence[Mapping[str, Any]]]:
        return {"By number": evaluation.by_number}

    def draw(self, folder: Path, split: str, measured: Measured[RegressionEvaluation]) -> dict[str, Path]:
        evaluation, path = measured.evaluation, folder / f"{split}_residuals.png"
        plot_residuals(evaluation.answers, evaluation.labels, evaluation.label_names, path)
        return {f"{split}_residuals": path}

    def details(
        self, split: str, measured: Measured[RegressionEvaluation], plots: Mapping[str, Path]
    ) -> list[Section]:
        return [_numbers(split, measured, plots)]

    def size(self, evaluation: RegressionEvaluation) -> str:
        count = len(evaluation.label_names)
        return super().size(evaluation) + ("" if count == 1 else f", {count} numbers")

    def interval(self, evaluation: RegressionEvaluation, metric: str) -> Interval:
        if metric == "mae":
            return mean_interval(evaluation.absolute_errors())
        return super().interval(evaluation, metric)


def _numbers(split: str, measured: Measured[RegressionEvaluation], plots: Mapping[str, Path]) -> Section:
    caption = (
        f"Answers against labels, {split} split: on the dashed line an answer is right. Below, by how much each "
        "answer is too high or too low."
    )
    numbers = Table.of(_COLUMNS, measured.evaluation.by_number)
    blocks = [numbers, *drawn_figures(plots, split, {"residuals": caption})]
    if measured.constants:
        names = [name for name in ("mae", "rmse", "r2") if any(name in each for each in measured.constants.values())]
        beside = {"this model": measured.metrics, **measured.constants}
        same = [[name, *(metrics.get(metric) for metric in names)] for name, metrics in beside.items()]
        blocks += [Table(["answer", *names], same), Text("Beside the same answer for each row.", "note")]
    return Section(f"Answers: {split}", blocks)
