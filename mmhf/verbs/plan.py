"""What a recipe would do, and what is wrong with it: values, rows, stages, rates, steps, memory, time."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainingArguments

from mmhf.cpu import describe_allocator, num_threads
from mmhf.data.checks import check_data
from mmhf.data.filters import describe_steps
from mmhf.data.loading import LoadedData
from mmhf.data.pixels import describe_jpeg_decoder
from mmhf.errors import InputError, UnreachableError
from mmhf.features.choice import PartChoice, PartMeasure, choose_parts, measure_shapes
from mmhf.features.parts import FeaturePart
from mmhf.files import CONFIG_FILE, RECIPE_FILE
from mmhf.hub.hub_errors import hub_may_answer, use_caches_if_hub_is_silent
from mmhf.hub.releases import check_version_is_free, resolve_model
from mmhf.models.building import describe_own_shapes
from mmhf.models.quantization import describe_quantized
from mmhf.recipe import ResolvedRecipe, json_schema
from mmhf.recipe.cross_validation import check_folds, fold_override
from mmhf.recipe.data_sections import DataSectionBase
from mmhf.recipe.training_sections import StageSection, cache_section
from mmhf.tasks import AnyTask, task_of
from mmhf.tasks.distillation import describe_teacher
from mmhf.tasks.feature_caching import cache_setting
from mmhf.training.arguments import (
    build_stage_plan,
    check_batches,
    describe_batch,
    fit_micro_batch,
    recipe_stages,
    stages_with_one_row,
    state_values,
    steps_per_epoch,
    training_arguments,
)
from mmhf.training.compiled import describe_compiling
from mmhf.training.devices import choose_precision, describe_images
from mmhf.training.frozen_copies import describe_copies
from mmhf.training.plan import (
    StageReport,
    check_batches_of_one,
    describe_largest_batch,
    describe_stages,
    memory_problems,
)
from mmhf.training.run_folder import find_run_folder
from mmhf.training.stages import StagePlan
from mmhf.training.step_time import StepTime, measure_stages
from mmhf.verbs import _plan_tables
from mmhf.verbs.own_data import OwnData, resolve

_WAIT_FOR_HUB = 2.0


@dataclass
class Plan:
    """A recipe's plan; as text it is what `mmhf plan` prints.

    Attributes:
        resolved ([`ResolvedRecipe`]): The recipe.
        problems (`list[str]`): What training would refuse or could not learn from, each with a way out.
        notes (`list[str]`): What it would accept, but is worth knowing.
        unknown (`list[str]`): What could not be looked up, because the Hub does not answer now.
        run (`dict[str, str]`): Rows, labels, batch, steps, device.
        stages (`list[StageReport]`): By stage, groups, rates and memory; empty without the backbones' configuration.
        cached (`list[str]`): For each stage, which frozen parts are computed once.
        times (`list[StepTime]`): For each stage, where it was asked for.
        as_written (`list[tuple]`): The stages as far as the recipe alone tells: name, length, groups, rate.
    """

    resolved: ResolvedRecipe
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    run: dict[str, str] = field(default_factory=dict)
    stages: list[StageReport] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    times: list[StepTime] = field(default_factory=list)
    as_written: list[tuple[str, str, str, str]] = field(default_factory=list)

    def print(self, console: Console, *, all_values: bool = False) -> None:
        """Print it.

        Args:
            console (`Console`): Where to.
            all_values (`bool`, defaults to `False`): Also default values, and each group by itself.
        """
        _plan_tables.print_plan(self, console, all_values=all_values)

    def __str__(self) -> str:
        console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        self.print(console)
        return console.export_text()

    def _repr_html_(self) -> str:
        console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        self.print(console)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def run(options: argparse.Namespace) -> None:
    if options.schema:
        json.dump(json_schema(), sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    if options.recipe is None:
        raise InputError("mmhf plan needs a recipe, or --schema")
    planned = plan(options.recipe, options.overrides, time=options.time, folds=options.folds)
    planned.print(Console(), all_values=options.all)
    if planned.problems:
        sys.stdout.flush()
        raise InputError("\n".join(planned.problems))


def plan(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    train_dataset: OwnData | None = None,
    eval_dataset: OwnData | None = None,
    time: bool = False,
    folds: int | None = None,
) -> Plan:
    """Work out what a recipe would do, without weights or GPU.

    Args:
        recipe, overrides, train_dataset, eval_dataset: As `mmhf.train` takes them.
        time (`bool`, defaults to `False`): Also make a few steps of each stage on this device, with fresh weights.
        folds (`int`, *optional*): Plan a cross-validation of so many folds, by the first of its runs.

    Raises:
        InputError: The recipe itself is wrong; what is absent or wrong around it stands in `problems`.
    """
    resolved = resolve(recipe, overrides, train_dataset=train_dataset, eval_dataset=eval_dataset)
    if folds is not None:
        check_folds(resolved.recipe, folds)
        overrides = [*overrides, "training.output_dir=null", fold_override(1, folds)]
        resolved = resolve(recipe, overrides, train_dataset=train_dataset, eval_dataset=eval_dataset)
    task, found = task_of(resolved.recipe), Plan(resolved)
    if task.uses_hub(weights=False):
        use_caches_if_hub_is_silent(_WAIT_FOR_HUB)
    parent = _find_parent(task, found)
    _find_teacher(task, found)
    # Stages can be planned all the same from the backbones in place of the parent, and without the data.
    borne = len(found.problems)
    data = _load_data(task, found)
    if data is None:
        borne = len(found.problems)
    args = training_arguments(
        resolved.recipe, str(resolved.name), has_validation=data is None or "validation" in data.splits
    )
    num_rows = None if data is None else task.num_train_rows(data)
    found.run = _describe_run(args, data, num_rows)
    if folds is not None:
        found.run["folds"] = f"{folds}, each a run such as this, the first"
    if task.teacher is not None:
        found.run["teacher"] = describe_teacher(task, task.teacher, data, args.device.type)
    if data is not None:
        with _noted(found):
            task.teaching(data)
    found.run |= task.plan_facts(num_rows)
    found.run["JPEG decoder"] = describe_jpeg_decoder(task.least_side())
    found.run["precision"] = str(choose_precision(resolved.recipe.training))
    found.as_written = [_as_written(stage, args) for stage in recipe_stages(resolved.recipe, args)]
    if num_rows == 0:
        found.problems.append("data: the training split has no rows that can be used")
    else:
        with _noted(found):
            check_batches(resolved.recipe, args, num_rows)
    _check_outputs(found)
    unreachable = task.unreachable_backbones()
    for message in unreachable:
        _add_unreachable(found, message)
    if unreachable or len(found.problems) > borne:
        return found
    _plan_stages(task, found, data, args, parent=parent, num_rows=num_rows, time=time)
    return found


def _plan_stages(
    task: AnyTask,
    found: Plan,
    data: LoadedData | None,
    args: TrainingArguments,
    *,
    parent: Path | None,
    num_rows: int | None,
    time: bool,
) -> None:
    """Work out what each stage would train, cache and take, on a model without weights."""
    encoder = task.recipe.model.encoders().get("image")
    if encoder is not None and (own_shapes := describe_own_shapes(encoder, task.recipe.data)) is not None:
        found.run["image shapes"] = own_shapes
    model = task.build_model(data, parent=parent, device="meta")
    found.run["images"] = describe_images(model, args.device)
    if few_bits := describe_quantized(model):
        found.run["quantization"] = few_bits
    if micro_batch := fit_micro_batch(task.recipe, args, model, lambda count: task.example_inputs(count, "meta")):
        found.run["micro-batch"] = micro_batch
        found.run["effective batch"] = describe_batch(args)
    # Without data an epoch has no length: shapes and rates are still planned, as if it had one step.
    stage_plan = build_stage_plan(model, task.recipe, args, num_rows or args.per_device_train_batch_size)
    if one_row := stages_with_one_row(task.recipe, args, num_rows):
        with _noted(found):
            check_batches_of_one(stage_plan, task.example_inputs(1, "meta"), one_row)
    precision = choose_precision(task.recipe.training).mixed
    a_sample = task.example_inputs(1, "meta")
    measure = functools.cache(lambda part: measure_shapes(model, part, a_sample))
    found.stages = describe_stages(
        stage_plan,
        task.example_inputs(args.per_device_train_batch_size, "meta"),
        state_values_per_parameter=state_values(task.recipe, args),
        measure=measure,
        precision=precision,
        length_known=num_rows is not None,
    )
    if any(len(stage.curves) < len(stage_plan.partition) for stage in stage_plan.stages):
        found.run["frozen weights"] = describe_copies(args.device, precision)
    found.run["torch.compile"] = describe_compiling(args, len(stage_plan.stages))
    found.run["fits at once"] = describe_largest_batch(found.stages, args)
    _plan_features(task, found, data, args, stage_plan, measure)
    # A recipe whose data is elsewhere will train elsewhere.
    (found.notes if data is None else found.problems).extend(memory_problems(found.stages, args))
    if time and data is not None:
        fresh = task.build_model(data, parent=parent, device="meta").to_empty(device=args.device)
        fresh_plan = build_stage_plan(fresh, task.recipe, args, num_rows or args.per_device_train_batch_size)
        inputs = task.example_inputs(args.per_device_train_batch_size, str(args.device))
        found.times = measure_stages(fresh_plan, inputs, accumulation=args.gradient_accumulation_steps)


def _plan_features(
    task: AnyTask,
    found: Plan,
    data: LoadedData | None,
    args: TrainingArguments,
    stage_plan: StagePlan,
    measure: Callable[[FeaturePart], PartMeasure | None],
) -> None:
    """Say which features each stage stores, and whether those that it needs are among them."""
    choices: list[list[PartChoice]] = [[] for _ in found.stages]
    if cache_section(task.recipe.cache).mode == "off":
        found.cached = ["off"] * len(found.stages)
    elif data is None:
        found.cached = [_plan_tables.WITHOUT_DATA] * len(found.stages)
    else:
        choices = choose_parts(stage_plan, cache_setting(task, data, args), measure)
        found.cached = ["; ".join(choice.describe() for choice in stage) or "nothing" for stage in choices]
    if data is not None:
        with _noted(found):
            task.check_features(stage_plan, choices)


@contextlib.contextmanager
def _noted(found: Plan, refused: str = "{}", *, unreachable: str = "{}") -> Iterator[None]:
    """Note, in these words, what is refused or cannot be looked up, and go on."""
    try:
        yield
    except UnreachableError as error:
        _add_unreachable(found, unreachable.format(error))
    except InputError as error:
        found.problems.append(refused.format(error))


def _load_data(task: AnyTask, found: Plan) -> LoadedData | None:
    """The data, looked at; None where it cannot be."""
    section: DataSectionBase = task.recipe.data
    data = None
    with _noted(found, unreachable="data: {}"):
        data = task.load_data(check_images=False)
    if data is not None and "train" not in data.splits:
        found.problems.append(f"data: there is no training split, only {', '.join(data.splits)}")
        return None
    if data is not None:
        check = check_data(section, data)
        found.problems += check.problems
        found.notes += check.notes
    return data


def _find_parent(task: AnyTask, found: Plan) -> Path | None:
    words = "init_from: {}; planned from the backbones instead"
    with _noted(found, words, unreachable=words):
        if task.recipe.init_from is not None:
            return resolve_model(task.recipe.init_from, verify=False, only=[CONFIG_FILE]).path
    return None


def _find_teacher(task: AnyTask, found: Plan) -> None:
    """Look at the teacher's configuration; where there is none to look at, the run is planned without it."""
    teacher = None
    with _noted(found, unreachable="{}; planned without it"):
        teacher = task.teacher
    task.teacher = teacher


def _add_unreachable(found: Plan, message: str) -> None:
    """Where the Hub may answer another time, the recipe may be right; switched off, it cannot answer."""
    (found.unknown if hub_may_answer() else found.problems).append(message)


def _check_outputs(found: Plan) -> None:
    """Look at where the run and its release would be written."""
    recipe = found.resolved.recipe
    folder = recipe.training.get("output_dir")
    if folder is not None:
        try:
            find_run_folder(Path(folder), found.resolved)
        except InputError as error:
            # A recipe is not wrong for having been trained.
            is_trained = (Path(folder) / RECIPE_FILE).exists()
            (found.notes if is_trained else found.problems).append(str(error))
    if recipe.release is not None and not recipe.release.push:
        with _noted(found):
            check_version_is_free(recipe.release.repo, recipe.release.version)


def _describe_run(args: TrainingArguments, data: LoadedData | None, num_rows: int | None) -> dict[str, str]:
    facts: dict[str, str] = {}
    if data is not None and data.filter_steps:
        facts["filters"] = describe_steps(data.filter_steps)
    facts["rows"] = (
        _plan_tables.WITHOUT_DATA
        if data is None
        else ", ".join(f"{split} {data.num_rows(split) or 'streamed'}" for split in data.splits)
    )
    if data is not None and data.label_names:
        facts["labels"] = ", ".join(data.label_names)
    facts["effective batch"] = describe_batch(args)
    facts["steps an epoch"] = str(steps_per_epoch(num_rows, args)) if num_rows else _plan_tables.WITHOUT_DATA
    facts["device"] = str(args.device)
    facts["CPU threads"] = str(num_threads())
    facts["memory allocator"] = describe_allocator()
    return facts


def _as_written(stage: StageSection, args: TrainingArguments) -> tuple[str, str, str, str]:
    length = f"{stage.steps} steps" if stage.steps else f"{stage.epochs:g} epochs"
    rate = args.learning_rate if stage.learning_rate is None else stage.learning_rate
    return stage.name, length, str(stage.train), str(rate)
