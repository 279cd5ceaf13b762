"""The end of a run: what was trained is measured, and model, report and metrics are written to its folder."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mmhf.damage import is_run_file, mark_complete
from mmhf.data.bad_examples import BadExampleLog
from mmhf.data.duplicates import write_duplicates
from mmhf.data.filters import describe_steps
from mmhf.data.loading import LoadedData
from mmhf.files import BAD_EXAMPLES_FILE, DUPLICATES_FILE
from mmhf.recipe import ResolvedRecipe
from mmhf.tasks import AnyTask, Measured
from mmhf.tasks.distillation import Teacher
from mmhf.tasks.frozen_features import FrozenFeatures
from mmhf.training.arguments import describe_machine
from mmhf.training.trainer import MMTrainer
from mmhf.verbs._cross_validation import write_fold_predictions

logger = logging.getLogger(__name__)


def finish(
    trainer: MMTrainer,
    task: AnyTask,
    data: LoadedData,
    frozen: FrozenFeatures,
    *,
    resolved: ResolvedRecipe,
    bad_examples: BadExampleLog,
) -> dict[str, Measured]:
    """Evaluate what was trained, and write model, report and, last, the metrics, which mark a finished run."""
    task.finish(trainer, data)
    measured = _measure(trainer, task, data)
    trainer.save_model()
    trainer.save_state()
    if trainer.args.process_index > 0:
        return measured
    folder = trainer.run_dir
    mark_complete(folder, is_run_file)
    bad_examples.write_csv(folder / BAD_EXAMPLES_FILE)
    measured = _beside_baselines(measured, task, data, frozen)
    if task.recipe.data.fold is not None:
        write_fold_predictions(folder, task.predictions(trainer, data, "validation"), task.recipe.data.fold)
    if data.duplicates:
        write_duplicates(folder / DUPLICATES_FILE, data.duplicates)
    facts = task.run_facts(
        folder,
        resolved,
        trained=_facts(trainer, data, frozen, teacher=task.teacher),
        stages=trainer.plan.summary(),
        log_history=trainer.state.log_history,
        bad_examples=bad_examples.read(),
        empty_texts=data.empty_texts,
        duplicates=data.duplicates,
    )
    task.write_report(facts, measured)
    mark_complete(folder, is_run_file)
    if "mlflow" in (trainer.args.report_to or []) and "mlflow" in task.recipe.tracking.log_model:
        importlib.import_module("mmhf.inference.mlflow_model").log_model(folder)
    return measured


def _measure(trainer: MMTrainer, task: AnyTask, data: LoadedData) -> dict[str, Measured]:
    """Evaluate the splits that the recipe asks for, and give their numbers to the trackers."""
    splits = [split for split in task.recipe.evaluation.splits if split in data.splits]
    measured = {split: task.measure(trainer, data, split) for split in splits}
    for split, result in measured.items():
        trainer.log({f"{split}_{name}": value for name, value in result.metrics.items()})
    return measured


def _beside_baselines(
    measured: Mapping[str, Any], task: AnyTask, data: LoadedData, frozen: FrozenFeatures
) -> dict[str, Measured]:
    """Put what needs no training beside what was measured; where that fails, the run is finished without it."""
    try:
        baselines = task.baselines(frozen, data)
    except (ValueError, np.linalg.LinAlgError) as error:  # such as features that are no numbers
        logger.warning("The baselines could not be measured: %s", error)
        baselines = {}
    return {split: replace(each, baselines=baselines.get(split, {})) for split, each in measured.items()}


def _facts(
    trainer: MMTrainer, data: LoadedData, frozen: FrozenFeatures, *, teacher: Teacher | None
) -> dict[str, object]:
    args = trainer.args
    rows = {f"rows, {split}": data.num_rows(split) or "streamed" for split in data.splits}
    filters = {"filters": describe_steps(data.filter_steps)} if data.filter_steps else {}
    return {
        "model": type(trainer.plan.model).__name__,
        "parameters": f"{trainer.plan.model.num_parameters():,}",
        **({} if teacher is None else {"teacher": f"{teacher}, {teacher.section.weight:.0%} of the loss"}),
        **filters,
        **rows,
        "optimizer steps": trainer.state.global_step,
        "effective batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "device": f"{args.world_size} × {args.device.type}",
        "CPU": "{cpu}, threads: {threads}".format_map(describe_machine(args)),
        "seed": args.seed,
        **({} if trainer.features is None else trainer.features.facts()),
        **({"no baselines of frozen features": frozen.why_not} if frozen.why_not else {}),
        **({"features for baselines": f"{frozen.seconds:.1f} s of CPU time"} if frozen.splits else {}),
    }
