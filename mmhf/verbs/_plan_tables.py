"""How a plan is printed: problems first, then what differs from the defaults; groups that train alike share a line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmhf.training.plan import GroupRow, MemoryEstimate, StageReport
from mmhf.training.step_time import StepTime

if TYPE_CHECKING:
    from mmhf.recipe import ResolvedRecipe
    from mmhf.verbs.plan import Plan

WITHOUT_DATA = "unknown without the data"
_MOST_LABELS = 12
_NUMBERED = re.compile(r"^(.*\.)(\d+)$")


def print_plan(plan: Plan, console: Console, *, all_values: bool) -> None:
    """Print a plan.

    Args:
        plan ([`Plan`]): The plan.
        console (`Console`): Where to.
        all_values (`bool`): Also default values, and each group by itself.
    """
    for line in plan.problems:
        console.print(Text(f"problem: {line}", style="bold red"), soft_wrap=True)
    for line in plan.unknown:
        console.print(Text(f"unknown: {line}", style="yellow"), soft_wrap=True)
    for line in plan.notes:
        console.print(Text(f"note: {line}", style="yellow"), soft_wrap=True)
    console.print(_values_table(plan.resolved, all_values=all_values))
    console.print(_run_table(plan, all_values=all_values))
    if not plan.stages:
        console.print(_stages_as_written(plan))
        return
    for number, (report, cached) in enumerate(zip(plan.stages, plan.cached, strict=True)):
        console.print(_stage_table(report, all_values=all_values))
        lines = [f"batch norm: {report.batch_norm}", f"cached: {cached}", _memory(report.memory)]
        if plan.times:
            lines.append(_time(plan.times[number]))
        if report.start == "linear_probe":
            lines.insert(0, "start: the best linear fit to the stored features")
        lines[:0] = [f"{selector}: {', '.join(groups)}" for selector, groups in report.counted.items()]
        for line in lines:
            console.print(Text(line), soft_wrap=True)
        console.print()


def _values_table(resolved: ResolvedRecipe, *, all_values: bool) -> Table:
    origins = resolved.provenance
    shown = {key: value for key, value in resolved.leaves().items() if all_values or origins[key] != "default"}
    title = f"Recipe {resolved.name}" + ("" if all_values else ", where it differs from the defaults (--all: all)")
    table = Table(title=title, title_justify="left")
    table.add_column("key", overflow="fold")
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    for key, value in shown.items():
        origin = origins[key]
        table.add_row(key, Text(str(value)), origin.rpartition("/")[2], style="dim" if origin == "default" else "")
    return table


def _run_table(plan: Plan, *, all_values: bool) -> Table:
    table = Table(title="Run", title_justify="left", show_header=False)
    for name, value in plan.run.items():
        labels = value.split(", ")
        if name == "labels" and len(labels) > _MOST_LABELS and not all_values:
            value = f"{len(labels)}: {', '.join(labels[:_MOST_LABELS])}, …"
        table.add_row(name, Text(value))
    return table


def _stages_as_written(plan: Plan) -> Table:
    table = Table(title="Stages, as the recipe has them", title_justify="left")
    for column in ("stage", "length", "trains", "learning rate"):
        table.add_column(column, overflow="fold")
    for row in plan.as_written:
        table.add_row(*row)
    return table


def fold_groups(groups: Sequence[GroupRow]) -> list[GroupRow]:
    """Groups that are numbered in a row and train alike as one: `language.layers.0-29`."""
    folded: list[GroupRow] = []
    for _, run in itertools.groupby(enumerate(groups), key=_kind):
        rows = [row for _, row in run]
        if len(rows) < 3:
            folded += rows
            continue
        first, last = _NUMBERED.match(rows[0].name), _NUMBERED.match(rows[-1].name)
        assert first is not None and last is not None
        name = f"{first[1]}{first[2]}-{last[2]}"
        folded.append(GroupRow(name, sum(row.num_parameters for row in rows), rows[0].learning_rate))
    return folded


def _kind(numbered: tuple[int, GroupRow]) -> tuple[str, float | None]:
    place, row = numbered
    match = _NUMBERED.match(row.name)
    return (match[1], row.learning_rate) if match else (f"{row.name} {place}", row.learning_rate)


def _stage_table(report: StageReport, *, all_values: bool) -> Table:
    table = Table(title=f"Stage {report.name}: {report.length}, schedule {report.schedule}", title_justify="left")
    table.add_column("group", overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("trains", justify="right")
    table.add_column("learning rate", justify="right")
    for row in report.groups if all_values else fold_groups(report.groups):
        trains = row.learning_rate is not None
        table.add_row(
            row.name,
            f"{row.num_parameters:,}",
            f"{row.num_parameters:,}" if trains else "0",
            f"{row.learning_rate:.1e}" if trains else "frozen",
            style="" if trains else "dim",
        )
    total = sum(row.num_parameters for row in report.groups)
    trained = sum(row.num_parameters for row in report.groups if row.learning_rate is not None)
    table.add_section()
    table.add_row("all", f"{total:,}", f"{trained:,}", f"{trained / total:.1%} trains")
    return table


def _memory(memory: MemoryEstimate) -> str:
    mib = 2**20
    return (
        f"memory: about {memory.total_gib:.2f} GiB a device (weights {memory.weights / mib:.0f} MiB, gradients "
        f"{memory.gradients / mib:.0f}, optimizer {memory.optimizer / mib:.0f}, activations "
        f"{memory.activations / mib:.0f})"
    )


def _time(time: StepTime) -> str:
    minutes = time.total / 60
    told = f"{minutes:.0f} min" if minutes >= 2 else f"{time.total:.0f} s"
    return (
        f"time: about {told}, {time.step:.3g} s a step of the largest shape; reading images not counted, and what is "
        "cached is computed once"
    )
