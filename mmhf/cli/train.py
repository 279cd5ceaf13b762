"""Train a recipe, evaluate what came out, and release it if the recipe says so.

accelerate launch scripts/train.py recipes/quickstart/fusion.yaml training.learning_rate=1e-4
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import datasets
import transformers
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from mmhf.cli._console import print_metrics
from mmhf.data.bad_examples import BadExampleLog
from mmhf.data.duplicates import write_duplicates
from mmhf.data.filters import describe_steps
from mmhf.data.loading import LoadedData
from mmhf.errors import InputError
from mmhf.files import BAD_EXAMPLES_FILE, BAD_EXAMPLES_LOG, DUPLICATES_FILE, REPORT_FILE
from mmhf.hub import resolve_model
from mmhf.hub.hub_errors import use_caches_if_hub_is_silent
from mmhf.hub.lineage import check_release_is_possible, release_run, write_lineage
from mmhf.recipe import ResolvedRecipe, load_recipe
from mmhf.tasks import AnyTask, Measured, task_of
from mmhf.training.arguments import build_stage_plan, longer, training_arguments
from mmhf.training.position import run_conditions
from mmhf.training.run_folder import RunFolder, choose_run_dir, find_run_folder
from mmhf.training.tracking import tracked_run
from mmhf.training.trainer import MMTrainer

logger = logging.getLogger(__name__)

_WAIT_FOR_HUB = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file, such as recipes/quickstart/fusion.yaml")
    parser.add_argument("overrides", nargs="*", help="key=value, such as training.learning_rate=1e-4")
    parser.add_argument("--resume", action="store_true", help="go on with the latest unfinished run of this recipe")
    parser.add_argument("--allow-changes", action="store_true", help="go on although the recipe has changed since")
    parser.add_argument(
        "--more",
        type=float,
        metavar="EPOCHS",
        help="train this many epochs longer than the recipe says, in its last stage; goes on with a finished run, too",
    )


def run(options: argparse.Namespace, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """The whole road, in order: recipe, data, run folder, model, trainer, training, evaluation, release.

    Args:
        options (`argparse.Namespace`): The command line.
        callbacks (`Sequence[TrainerCallback]`, *optional*): Of who calls this, such as a sweep.
    """
    resolved = load_recipe(options.recipe, options.overrides)
    if options.more is not None:
        resolved = load_recipe(options.recipe, [*options.overrides, longer(resolved.recipe, options.more)])
    recipe, task = resolved.recipe, task_of(resolved.recipe)
    parent = resolve_model(recipe.init_from) if recipe.init_from else None
    if recipe.release is not None:
        check_release_is_possible(recipe.release)

    if task.uses_hub(weights=parent is None):
        use_caches_if_hub_is_silent(_WAIT_FOR_HUB)
    data = _load_data(task)
    args = training_arguments(recipe, str(resolved.name), has_validation="validation" in data.splits)
    _set_verbosity(args)
    folder = _find_folder_once(resolved, args, options)
    if folder.is_finished:
        logger.info("The run in %s is finished; only its release was missing", folder.path)
        _release(resolved, args, folder)
        return
    transformers.set_seed(args.seed)

    parent_dir = parent.path if parent else None
    processor = task.build_processor(data, parent=parent_dir)
    model = task.build_model(data, processor=processor, parent=parent_dir)
    plan = build_stage_plan(model, recipe, args, task.num_train_rows(data))
    args.max_steps = plan.num_steps

    bad_examples = BadExampleLog(folder.path / BAD_EXAMPLES_LOG)
    is_first = args.process_index == 0
    with folder.claimed(resolved) if is_first else contextlib.nullcontext():
        if is_first:
            bad_examples.extend(data.bad_examples)
            write_lineage(folder.path, parent.reference if parent else None, data.fingerprint())
            _say_what_begins(resolved, data, model, folder)
        with tracked_run(args, recipe.tracking, folder.path.name):
            trainer = task.make_trainer(data, plan=plan, args=args, processor=processor, bad_examples=bad_examples)
            for callback in callbacks:
                trainer.add_callback(callback)
            trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
            task.finish(trainer, data)
            measured = _measure(trainer, task, data)
            trainer.save_model()
            trainer.save_state()
            if is_first:
                bad_examples.write_csv(folder.path / BAD_EXAMPLES_FILE)
                _report(trainer, task, data, resolved=resolved, measured=measured, bad_examples=bad_examples)
        if is_first:
            print_metrics(resolved.name, measured)
            logger.info("Run folder: %s", folder.path)
            logger.info("Report: %s", folder.path / REPORT_FILE)
            _release(resolved, args, folder)


def _report(
    trainer: MMTrainer,
    task: AnyTask,
    data: LoadedData,
    *,
    resolved: ResolvedRecipe,
    measured: dict[str, Measured],
    bad_examples: BadExampleLog,
) -> None:
    """Write the list of duplicates, the report and, last, the metrics, which mark a finished run."""
    run_dir = Path(str(trainer.args.output_dir))
    if data.duplicates:
        write_duplicates(run_dir / DUPLICATES_FILE, data.duplicates)
    facts = task.run_facts(
        run_dir,
        resolved,
        trained=_facts(trainer, data),
        stages=trainer.plan.summary(),
        log_history=trainer.state.log_history,
        bad_examples=bad_examples.read(),
        duplicates=data.duplicates,
    )
    task.write_report(facts, measured)


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
    if folder.checkpoint is not None:
        logger.info("Going on from %s", folder.checkpoint)


def _measure(trainer: MMTrainer, task: AnyTask, data: LoadedData) -> dict[str, Measured]:
    """Evaluate the splits that the recipe asks for, and give their numbers to the trackers."""
    splits = [split for split in task.recipe.evaluation.splits if split in data.splits]
    measured = {split: task.measure(trainer, data, split) for split in splits}
    for split, result in measured.items():
        trainer.log({f"{split}_{name}": value for name, value in result.metrics.items()})
    return measured


def _release(resolved: ResolvedRecipe, args: TrainingArguments, folder: RunFolder) -> None:
    release = resolved.recipe.release
    if release is not None and args.process_index == 0:
        logger.info("Release: %s", release_run(folder.path, release))


def _facts(trainer: MMTrainer, data: LoadedData) -> dict[str, object]:
    args = trainer.args
    rows = {f"rows, {split}": data.num_rows(split) or "streamed" for split in data.splits}
    filters = {"filters": describe_steps(data.filter_steps)} if data.filter_steps else {}
    return {
        "model": type(trainer.plan.model).__name__,
        "parameters": f"{trainer.plan.model.num_parameters():,}",
        **filters,
        **rows,
        "optimizer steps": trainer.state.global_step,
        "effective batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "device": f"{args.world_size} × {args.device.type}",
        "seed": args.seed,
        **({} if trainer.features is None else trainer.features.facts()),
    }


def _find_folder_once(resolved: ResolvedRecipe, args: TrainingArguments, options: argparse.Namespace) -> RunFolder:
    """Let the first process choose the run folder and tell the others, or all of them what is wrong with it."""
    args.device  # noqa: B018  (starts the process group that the broadcast needs)
    outcome: list[RunFolder | Exception | None] = [None]
    if args.process_index == 0:
        try:
            outcome[0] = find_run_folder(
                choose_run_dir(resolved, resume=options.resume),
                resolved,
                conditions=run_conditions(args),
                allow_changes=options.allow_changes,
            )
        except ValueError as error:
            outcome[0] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    assert outcome[0] is not None
    args.output_dir = str(outcome[0].path)
    return outcome[0]


def _set_verbosity(args: TrainingArguments) -> None:
    transformers.logging.set_verbosity_warning()
    transformers.logging.disable_progress_bar()
    if args.process_index > 0:
        logging.getLogger("mmhf").setLevel(logging.WARNING)
        datasets.disable_progress_bars()
