"""Train a recipe, evaluate the model, and release it if the recipe says so."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import transformers
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmhf.data.bad_examples import BadExampleLog
from mmhf.data.loading import LoadedData
from mmhf.errors import InputError
from mmhf.files import BAD_EXAMPLES_FILE, BAD_EXAMPLES_LOG, REPORT_FILE
from mmhf.hub import ReleaseReference, resolve_model
from mmhf.hub.hub_errors import use_caches_if_hub_is_silent
from mmhf.hub.lineage import check_release_is_possible, check_same_teacher, release_run, write_lineage
from mmhf.hub.pushing import complete_pushed_run
from mmhf.models.tower import TowerModel
from mmhf.parallel import from_first
from mmhf.recipe import ResolvedRecipe
from mmhf.recipe.history import RunPart, run_parts
from mmhf.tasks import AnyTask, task_of
from mmhf.tasks.frozen_features import FrozenFeatures, frozen_features
from mmhf.tasks.references import references_of
from mmhf.training.arguments import (
    build_stage_plan,
    check_batches,
    describe_machine,
    fit_micro_batch,
    leaves_micro_batch_open,
    longer,
    stages_with_one_row,
    start_process_group,
    training_arguments,
)
from mmhf.training.checkpoints import step_of
from mmhf.training.plan import check_batches_of_one
from mmhf.training.position import run_conditions
from mmhf.training.run_folder import RunFolder, choose_run_dir, find_run_folder, steps_done
from mmhf.training.tracking import tracked_run
from mmhf.verbs._cross_validation import cross_validate
from mmhf.verbs._finishing import finish
from mmhf.verbs._metrics_table import print_metrics
from mmhf.verbs.own_data import OwnData, resolve
from mmhf.verbs.run import Run

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    train(
        options.recipe,
        options.overrides,
        resume=options.resume,
        allow_changes=options.allow_changes,
        more=options.more,
        folds=options.folds,
    )


def train(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    train_dataset: OwnData | None = None,
    eval_dataset: OwnData | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: bool = False,
    allow_changes: bool = False,
    more: float | None = None,
    folds: int | None = None,
) -> Run:
    """The whole road, in order: recipe, data, run folder, model, trainer, training, evaluation, release.

    Args:
        recipe (`str`, `Path` or `dict`): A recipe's file, the name of one that comes with mmhf, or its values.
        overrides (`Sequence[str]`): Such as `training.learning_rate=1e-4`.
        train_dataset, eval_dataset (*optional*): A DataFrame, a data set of `datasets` or torch, or a list of dicts,
            in place of the recipe's data; images are paths, PIL images or bytes, in the columns that `data.columns`
            names. Without `eval_dataset`, the recipe's `data.split` holds rows back for evaluation.
        callbacks (`Sequence[TrainerCallback]`): Added to the trainer's own, as a sweep does.
        resume (`bool`, defaults to `False`): Resume the latest unfinished run of this recipe.
        allow_changes (`bool`, defaults to `False`): Continue even though the recipe has changed since.
        more (`float`, *optional*): Train this many epochs longer than the recipe says, in its last stage.
        folds (`int`, *optional*): Cross-validate: train a model for each of so many folds of the rows of training and
            validation, and measure them together.

    Returns:
        [`Run`]: The run's folder, with its metrics, report and model; of a cross-validation its folder, with the
        means, and the run of each fold.

    Raises:
        InputError: The recipe, the data or the folder cannot be used.
    """
    data: dict[str, Any] = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    resolved = resolve(recipe, overrides, **data)
    if pinned := _pinned(resolved):
        overrides = [*overrides, *pinned]
        resolved = resolve(recipe, overrides, **data)
    if folds is not None:
        if more is not None:
            raise InputError("--more: trains one run longer; leave --folds out, or give the recipe more epochs")
        one = partial(train, recipe, callbacks=callbacks, allow_changes=allow_changes, **data)
        return cross_validate(resolved, folds, lambda of: one(overrides=[*overrides, *of]), resume=resume)
    parts_overrides = list(overrides)
    if more is not None:
        overrides = [*overrides, longer(resolved.recipe, more)]
        resolved = resolve(recipe, overrides, **data)
    if resolved.recipe.release is not None:
        check_release_is_possible(resolved.recipe.release)
    place = _Place(resume=resume, allow_changes=allow_changes)
    for part in run_parts(resolved, parts_overrides):
        place = _train(part, place, callbacks)
    assert place.run_dir is not None
    return Run(place.run_dir)


def _pinned(resolved: ResolvedRecipe) -> list[str]:
    """Overrides that name releases of the Hub by their commits, since tags and branches move."""
    recipe, pinned = resolved.recipe, []
    if recipe.init_from is not None and (parent := resolve_model(recipe.init_from)).is_on_hub:
        pinned.append(f"init_from={parent.repo}@{parent.commit}")
    teacher = task_of(recipe).teacher
    if teacher is not None and teacher.source.is_on_hub:
        key = "teacher" if isinstance(recipe.teacher, str) else "teacher.model"
        pinned.append(f"{key}={teacher.source.repo}@{teacher.source.commit}")
    return pinned


@dataclass(frozen=True)
class _Place:
    """Where a run may be continued.

    Attributes:
        resume (`bool`): Take the latest unfinished run of the recipe, where none is named.
        allow_changes (`bool`): Even if its recipe was another one.
        run_dir (`Path`, *optional*): The run's folder, once a part of it has been trained.
    """

    resume: bool
    allow_changes: bool
    run_dir: Path | None = None


def _train(part: RunPart, place: _Place, callbacks: Sequence[TrainerCallback]) -> _Place:
    """Train a part of a run, and evaluate and release after the last one; returns where the next part continues."""
    resolved = part.resolved
    recipe, task = resolved.recipe, task_of(resolved.recipe)
    parent = resolve_model(recipe.init_from) if recipe.init_from else None
    if task.uses_hub(weights=parent is None):
        use_caches_if_hub_is_silent()
    data = _load_data(task)
    task.teaching(data)  # a teacher that does not fit is named before anything is built
    args = training_arguments(recipe, str(resolved.name), has_validation="validation" in data.splits)
    teacher = task.teacher.source.reference if task.teacher else None
    num_rows, parent_dir = task.num_train_rows(data), parent.path if parent else None
    check_batches(recipe, args, num_rows)
    _check_shapes(task, args, data, parent_dir)
    _set_verbosity(args)
    folder = _find_folder(part, args, place, teacher)
    is_just_done = not folder.is_finished or steps_done(folder.path) == part.until_step
    after = replace(place, run_dir=folder.path, allow_changes=place.allow_changes or is_just_done)
    if folder.is_finished:
        if part.until_step is None:
            logger.info("The run in %s is finished; only its release was missing", folder.path)
            _release(resolved, args, folder)
        return after
    if part.until_step is not None:
        logger.info("Until step %d, before it was changed: %s", part.until_step, "; ".join(part.changes))
    transformers.set_seed(args.seed)

    processor = task.build_processor(data, parent=parent_dir)
    model = task.build_model(data, processor=processor, parent=parent_dir)
    if isinstance(model, TowerModel):
        model.refer_to(references_of(recipe, model, all_frozen=task.refers_to_frozen))
    plan = build_stage_plan(model, recipe, args, num_rows)
    args.max_steps = plan.num_steps

    bad_examples = BadExampleLog(folder.path / BAD_EXAMPLES_LOG)
    is_first = args.process_index == 0
    with folder.claimed(resolved) if is_first else contextlib.nullcontext():
        if is_first:
            bad_examples.extend(data.bad_examples)
            reference, machine = parent.reference if parent else None, describe_machine(args)
            write_lineage(folder.path, reference, data.fingerprint(), teacher=teacher, trained_on=machine)
            _say_what_begins(resolved, data, model, folder)
        done = 0 if folder.checkpoint is None else step_of(folder.checkpoint)
        run_name = folder.path.name if recipe.data.fold is None else "_".join(folder.path.parts[-2:])
        with tracked_run(args, resolved, run_name, done=done):
            trainer = task.make_trainer(data, plan=plan, args=args, processor=processor, bad_examples=bad_examples)
            for callback in (*callbacks, *([] if part.until_step is None else [_StopAfter(part.until_step)])):
                trainer.add_callback(callback)
            frozen = FrozenFeatures() if part.until_step is not None else frozen_features(task, trainer, data)
            if is_first and frozen.why_not not in ("", "off"):
                logger.info("No baselines beside the results: %s", frozen.why_not)
            trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
            if part.until_step is not None:
                return after
            measured = finish(trainer, task, data, frozen, resolved=resolved, bad_examples=bad_examples)
        if is_first:
            print_metrics(resolved.name, measured)
            logger.info("Run folder: %s", folder.path)
            logger.info("Report: %s", folder.path / REPORT_FILE)
            if args.push_to_hub:
                complete_pushed_run(str(trainer.hub_model_id), folder.path, revision=args.hub_revision)
            _release(resolved, args, folder)
    return after


def _check_shapes(task: AnyTask, args: TrainingArguments, data: LoadedData, parent_dir: Path | None) -> None:
    """Choose the micro-batch where the recipe leaves it open, and refuse what shapes show not to train, before weights
    are read: batches of one row, layers that have no low-rank changes, stages that train weights of few bits."""
    recipe, num_rows = task.recipe, task.num_train_rows(data)
    shapes_alone = cache(lambda: task.build_model(data, parent=parent_dir, device="meta"))
    if leaves_micro_batch_open(recipe):
        chosen = fit_micro_batch(recipe, args, shapes_alone(), lambda count: task.example_inputs(count, "meta"))
        logger.info("Micro-batch: %s", chosen)
    with_one_row = stages_with_one_row(recipe, args, num_rows)
    if with_one_row or recipe.model.lora is not None or recipe.model.few_bits():
        plan = build_stage_plan(shapes_alone(), recipe, args, num_rows)
        check_batches_of_one(plan, task.example_inputs(1, "meta"), with_one_row)


class _StopAfter(TrainerCallback):
    """Ends training after a step, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= self.step:
            control.should_log = control.should_save = control.should_training_stop = True


def _load_data(task: AnyTask) -> LoadedData:
    data = task.load_data()
    if "train" not in data.splits:
        found = ", ".join(data.splits)
        raise InputError(f"data source {task.recipe.data.source!r}: it has no training split, only {found}")
    return data


def _say_what_begins(resolved: ResolvedRecipe, data: LoadedData, model: PreTrainedModel, folder: RunFolder) -> None:
    rows = ", ".join(f"{data.num_rows(split) or 'streamed'} {split}" for split in data.splits)
    logger.info("Recipe %s in %s: %s rows", resolved.name, folder.path, rows)
    logger.info("%s, %s parameters", type(model).__name__, f"{model.num_parameters():,}")
    if data.bad_examples:
        logger.info("%d bad rows, see %s when the run ends", len(data.bad_examples), folder.path / BAD_EXAMPLES_FILE)
    if data.empty_texts:
        logger.info("%d rows without a text are used, as the recipe allows", sum(data.empty_texts.values()))
    if folder.checkpoint is not None:
        logger.info("Going on from %s", folder.checkpoint)


def _release(resolved: ResolvedRecipe, args: TrainingArguments, folder: RunFolder) -> None:
    release = resolved.recipe.release
    if release is not None and args.process_index == 0:
        logger.info("Release: %s", release_run(folder.path, release))


def _find_folder(part: RunPart, args: TrainingArguments, place: _Place, teacher: ReleaseReference | None) -> RunFolder:
    """Let the first process choose the run folder and tell the others, or all of them what is wrong with it."""
    start_process_group(args)

    def find() -> RunFolder:
        path = place.run_dir or choose_run_dir(part.resolved, resume=place.resume)
        if part.until_step is not None and steps_done(path) >= part.until_step:
            return RunFolder(path, is_finished=True)
        folder = find_run_folder(
            path, part.resolved, conditions=run_conditions(args), allow_changes=place.allow_changes
        )
        if teacher is not None and not (folder.is_finished or place.allow_changes):
            check_same_teacher(path, teacher)
        return folder

    folder = from_first(find)
    args.output_dir = str(folder.path)
    return folder


def _set_verbosity(args: TrainingArguments) -> None:
    transformers.logging.set_verbosity_warning()
    transformers.logging.disable_progress_bar()
    if args.process_index > 0:
        logging.getLogger("mmhf").setLevel(logging.WARNING)
        datasets.disable_progress_bars()
