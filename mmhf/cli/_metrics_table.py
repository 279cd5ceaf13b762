"""Metrics of splits side by side, as the verbs print them."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from mmhf.evaluation.classification import ClassificationEvaluation


def print_metrics(title: str, evaluations: Mapping[str, ClassificationEvaluation]) -> None:
    """Print a table with one row a metric and one column a split to standard output."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for split, evaluation in evaluations.items():
        table.add_column(f"{split} ({evaluation.num_rows} rows)", justify="right")
    for name in dict.fromkeys(name for evaluation in evaluations.values() for name in evaluation.metrics):
        values = (evaluation.metrics.get(name) for evaluation in evaluations.values())
        table.add_row(name, *("undefined" if value is None else f"{value:.4f}" for value in values))
    Console().print(table)
