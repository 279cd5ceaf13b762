"""Tables of metrics on standard output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from mmhf.tasks import Measured


def print_metrics(title: str, measured: Mapping[str, Measured]) -> None:
    """Print a table with one row a metric and one column a split to standard output."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for split, each in measured.items():
        table.add_column(f"{split} ({each.num_rows} rows)", justify="right")
    for name in dict.fromkeys(name for each in measured.values() for name in each.metrics):
        values = (each.metrics.get(name) for each in measured.values())
        table.add_row(name, *("undefined" if value is None else f"{value:.4f}" for value in values))
    Console().print(table)
