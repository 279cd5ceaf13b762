"""Tables of metrics on standard output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mmhf.evaluation.baselines import CPU_SECONDS

if TYPE_CHECKING:
    from mmhf.evaluation.cross_validation import FoldMetric
    from mmhf.tasks import Measured

_BESIDE = 6
"""Metrics that stand beside those of baselines."""


def print_folds(title: str, metrics: Mapping[str, FoldMetric]) -> None:
    """Print one row a metric and one column a split to standard output: mean ± standard deviation over folds.

    Args:
        title (`str`): Above the table.
        metrics (`Mapping[str, FoldMetric]`): By split and name, such as `validation_accuracy`.
    """
    table = Table(title=title, title_justify="left")
    splits = dict.fromkeys(name.partition("_")[0] for name in metrics)
    for column in ("metric", *splits):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in dict.fromkeys(name.partition("_")[2] for name in metrics):
        table.add_row(name, *(str(metrics.get(f"{split}_{name}", "")) for split in splits))
    Console().print(table)


def print_metrics(title: str, measured: Mapping[str, Measured]) -> None:
    """Print one row a metric and one column a split to standard output, and then what the baselines have."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for split, each in measured.items():
        table.add_column(f"{split} ({each.num_rows} rows)", justify="right")
    for name in dict.fromkeys(name for each in measured.values() for name in each.metrics):
        values = (each.metrics.get(name) for each in measured.values())
        table.add_row(name, *("undefined" if value is None else f"{value:.4f}" for value in values))
    console = Console()
    console.print(table)
    rivals = [(split, each) for split, each in measured.items() if each.baselines]
    if not rivals:
        return
    names = list(dict.fromkeys(name for _, each in rivals for of_one in each.baselines.values() for name in of_one))
    shown = [name for name in names if any(name in each.metrics for _, each in rivals)][:_BESIDE]
    beside = Table(title="beside what needs no training", title_justify="left")
    for column in ("split", "", *shown, "CPU s"):
        beside.add_column(column, justify="left" if column in ("split", "") else "right")
    for split, each in rivals:
        for name, metrics in {"this model": each.metrics, **each.baselines}.items():
            seconds = metrics.get(CPU_SECONDS)
            values = (metrics.get(metric) for metric in shown)
            cells = ("" if value is None else f"{value:.4f}" for value in values)
            beside.add_row(split, name, *cells, "" if seconds is None else f"{seconds:.1f}")
    console.print(beside)
