"""Show what a recipe would do: resolved values and where they come from, rows, stages, rates, steps, memory.

    mmhf plan recipes/quickstart/fusion.yaml training.per_device_train_batch_size=64
    mmhf plan --schema > recipe.schema.json

Needs neither GPU nor weights; of the Hub it fetches configuration files at most, and none for timm's models.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import TrainingArguments

from mmhf.data.filters import describe_steps
from mmhf.data.loading import LoadedData
from mmhf.errors import InputError
from mmhf.files import CONFIG_FILE
from mmhf.hub.hub_errors import use_caches_if_hub_is_silent
from mmhf.hub.releases import resolve_model
from mmhf.recipe import ResolvedRecipe, json_schema, load_recipe
from mmhf.recipe.training_sections import cache_section
from mmhf.tasks import AnyTask, task_of
from mmhf.tasks.feature_caching import planned_caching
from mmhf.training.arguments import build_stage_plan, recipe_stages, steps_per_epoch, training_arguments
from mmhf.training.plan import MemoryEstimate, StageReport, describe_stages
from mmhf.training.stages import StagePlan

_WAIT_FOR_HUB = 2.0
_MISSING_DATA = "unknown: the data is not here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value, such as training.learning_rate=1e-4")
    parser.add_argument("--schema", action="store_true", help="write the JSON Schema of recipes, for editors")


def run(options: argparse.Namespace) -> None:
    if options.schema:
        json.dump(json_schema(), sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    if options.recipe is None:
        raise InputError("mmhf plan needs a recipe, or --schema")
    console = Console()
    resolved = load_recipe(options.recipe, options.overrides)
    task = task_of(resolved.recipe)
    console.print(_values_table(resolved))
    if task.uses_hub(weights=False):
        use_caches_if_hub_is_silent(_WAIT_FOR_HUB)
    data = _load_data_if_here(task, console)
    args = training_arguments(
        resolved.recipe, str(resolved.name), has_validation=data is None or "validation" in data.splits
    )
    num_rows = task.num_train_rows(data) if data is not None else None
    _print_run(console, args, data, num_rows)
    missing = task.unreachable_backbones()
    for problem in missing:
        console.print(Text(f"missing: {problem}", style="yellow"), soft_wrap=True)
    if missing:
        console.print(_stages_as_written(resolved, args))
        return
    parent = _find_parent_if_here(task, console)
    model = task.build_model(data, parent=parent, device="meta")
    # Without data an epoch has no length: shapes and rates are still planned, as if it had one step.
    plan = build_stage_plan(model, task.recipe, args, num_rows or args.per_device_train_batch_size)
    caching = _describe_caching(task, args, data, plan)
    for report, cached in zip(_describe(task, args, plan, length_known=num_rows is not None), caching, strict=True):
        console.print(_stage_table(report))
        for line in (f"batch norm: {report.batch_norm}", f"cached: {cached}", _memory(report.memory)):
            console.print(Text(line), soft_wrap=True)
        console.print()


def _load_data_if_here(task: AnyTask, console: Console) -> LoadedData | None:
    try:
        return task.load_data(check_images=False)
    except InputError as error:
        console.print(Text(f"data: {error}", style="yellow"), soft_wrap=True)
        return None


def _find_parent_if_here(task: AnyTask, console: Console) -> Path | None:
    if task.recipe.init_from is None:
        return None
    try:
        return resolve_model(task.recipe.init_from, verify=False, only=[CONFIG_FILE]).path
    except InputError as error:
        console.print(
            Text(f"missing: init_from {error}; planned from the backbones instead", style="yellow"), soft_wrap=True
        )
        return None


def _describe(task: AnyTask, args: TrainingArguments, plan: StagePlan, *, length_known: bool) -> list[StageReport]:
    recipe = task.recipe
    is_sgd = (recipe.optimizer.name if recipe.optimizer else str(args.optim)) == "sgd"
    return describe_stages(
        plan,
        task.example_inputs(args.per_device_train_batch_size, "meta"),
        state_values_per_parameter=1 if is_sgd else 2,
        length_known=length_known,
    )


def _describe_caching(task: AnyTask, args: TrainingArguments, data: LoadedData | None, plan: StagePlan) -> list[str]:
    """For each stage, which frozen parts are computed once."""
    if cache_section(task.recipe.cache).mode == "off":
        return ["off"] * len(plan.stages)
    if data is None:
        return [_MISSING_DATA] * len(plan.stages)
    choices = planned_caching(task, data, plan=plan, args=args)
    return ["; ".join(choice.describe() for choice in stage) or "nothing" for stage in choices]


def _values_table(resolved: ResolvedRecipe) -> Table:
    table = Table(title=f"Recipe {resolved.name}", title_justify="left")
    for column in ("key", "value", "from"):
        table.add_column(column, overflow="fold")
    for key, value in resolved.leaves().items():
        origin = resolved.provenance[key]
        table.add_row(key, Text(str(value)), origin, style="dim" if origin == "default" else "")
    return table


def _print_run(console: Console, args: TrainingArguments, data: LoadedData | None, num_rows: int | None) -> None:
    effective = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = (
        ", ".join(f"{split} {data.num_rows(split) or 'streamed'}" for split in data.splits) if data else _MISSING_DATA
    )
    table = Table(title="Run", title_justify="left", show_header=False)
    if data is not None and data.filter_steps:
        table.add_row("filters", Text(describe_steps(data.filter_steps)))
    table.add_row("rows", rows)
    if data is not None and data.label_names:
        table.add_row("labels", ", ".join(data.label_names))
    table.add_row(
        "effective batch",
        f"{effective} = {args.per_device_train_batch_size} a device × {args.gradient_accumulation_steps} accumulated "
        f"× {args.world_size} processes",
    )
    table.add_row("steps an epoch", str(steps_per_epoch(num_rows, args)) if num_rows else _MISSING_DATA)
    table.add_row("device", str(args.device))
    console.print(table)


def _stages_as_written(resolved: ResolvedRecipe, args: TrainingArguments) -> Table:
    table = Table(title="Stages, as far as they can be planned without the files above", title_justify="left")
    for column in ("stage", "length", "trains", "learning rate"):
        table.add_column(column)
    for stage in recipe_stages(resolved.recipe, args):
        length = f"{stage.steps} steps" if stage.steps else f"{stage.epochs:g} epochs"
        rate = args.learning_rate if stage.learning_rate is None else stage.learning_rate
        table.add_row(stage.name, length, str(stage.train), str(rate))
    return table


def _memory(memory: MemoryEstimate) -> str:
    mib = 2**20
    return (
        f"memory: about {memory.total_gib:.2f} GiB a device (weights {memory.weights / mib:.0f} MiB, gradients "
        f"{memory.gradients / mib:.0f}, optimizer {memory.optimizer / mib:.0f}, activations "
        f"{memory.activations / mib:.0f})"
    )


def _stage_table(report: StageReport) -> Table:
    table = Table(title=f"Stage {report.name}: {report.length}, schedule {report.schedule}", title_justify="left")
    table.add_column("group")
    table.add_column("parameters", justify="right")
    table.add_column("trains", justify="right")
    table.add_column("learning rate", justify="right")
    for row in report.groups:
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
