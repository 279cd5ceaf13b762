"""The report of a model that answers with numbers: answers against labels, and the rows that it misses most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmhf.evaluation.intervals import Interval, mean_interval
from mmhf.evaluation.plots import plot_residuals
from mmhf.evaluation.regression import REGRESSION_PROTOCOLS, RegressionEvaluation
from mmhf.evaluation.report.page import Block, Card, Figure, Section, Table, Text, shown_rows
from mmhf.evaluation.report.sections import RunFacts
from mmhf.evaluation.report.target_report import GalleryWords, Measured, TargetReport
from mmhf.evaluation.report.verdict import Verdict, modality_finding, verdict_beside

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
    cards = []
    for place, shown in zip(places, shown_rows(rows), strict=True):
        answers, labels = evaluation.answers[place], evaluation.labels[place]
        facts = {
            name: f"{answer:.4g}, true {label:.4g}"
            for name, answer, label in zip(evaluation.label_names, answers, labels, strict=True)
        }
        facts["id"] = shown["id"]
        cards.append(Card(image=shown["image"], text=shown["text"], facts=facts, wrong=evaluation.label_names[0]))
    return cards


class RegressionReport(TargetReport[RegressionEvaluation]):
    """Numbers, one a row or several."""

    protocols = REGRESSION_PROTOCOLS
    counted = "Rows with known numbers."
    left_out = "rows have no number or no readable image"
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

    def verdict(self, run: RunFacts, split: str, measured: Measured[RegressionEvaluation]) -> Verdict | None:
        """By the metric that checkpoints were chosen by, or the mean absolute error."""
        evaluation = measured.evaluation
        metric = run.best_metric if run.best_metric in evaluation.metrics and run.best_metric != "loss" else "mae"
        if metric not in evaluation.metrics:
            return None
        value = evaluation.metrics[metric]
        result = mean_interval(evaluation.absolute_errors()) if metric == "mae" else Interval(value, value, value)
        rows, count = f"{evaluation.num_rows:,} rows", len(evaluation.label_names)
        size = rows if count == 1 else f"{rows}, {count} numbers"
        others = [name for name in ("mae", "rmse", "r2", "spearman") if name != metric]
        findings, steps = modality_finding(measured.modalities)
        return verdict_beside(
            run,
            split,
            metric,
            result,
            size=size,
            measured=measured,
            others=others,
            findings=findings,
            steps=steps,
        )


def _numbers(split: str, measured: Measured[RegressionEvaluation], plots: Mapping[str, Path]) -> Section:
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
