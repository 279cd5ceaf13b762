"""Search for the values of recipe keys that train best."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

import optuna
from transformers import TrainerCallback

from mmhf.errors import InputError
from mmhf.recipe import ResolvedRecipe, load_recipe
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.sweep import Patience, SharedStudy, SweepSpace, as_overrides, load_space
from mmhf.sweep.outcome import BEST_RECIPE_FILE, write_outcome
from mmhf.sweep.trial_process import TrialOrder, preload
from mmhf.sweep.worker import OBJECTIVE_SPLIT, Worker
from mmhf.tasks import task_of
from mmhf.training.run_folder import OUTPUT_ROOT
from mmhf.verbs._console import log_to_console
from mmhf.verbs.train import train

logger = logging.getLogger(__name__)

JOURNAL_FILE = "journal.log"


def run(options: argparse.Namespace) -> None:
    """Space, recipe, study; trials until there are none left; the best recipe, a table and plots."""
    if options.trials is not None and options.trials < 1:
        raise InputError(f"--trials {options.trials}: expected 1 or more")
    space = load_space(options.space)
    overrides = list(options.overrides)
    if load_recipe(options.recipe, overrides).recipe.release is not None:
        logger.info("release: no trial is released; %s keeps the section", BEST_RECIPE_FILE)
        overrides.append("~release")
    resolved = load_recipe(options.recipe, overrides)
    _check(resolved, space, options.recipe, overrides)
    name = options.study or f"{resolved.name}_{space.path.stem}"
    folder = options.output or OUTPUT_ROOT / name
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = SharedStudy(
        options.storage or str(folder / JOURNAL_FILE),
        name,
        space=space,
        recipe=resolved.to_yaml(),
        patience=Patience(elsewhere=options.stale_after),
    )
    preload(__name__)
    num_trials = min(
        options.trials or space.num_trials, len(space.grid()) if space.section.sampler == "grid" else 10**9
    )
    Worker(study, train_trial, options.recipe, overrides, folder, num_trials).run()
    best = write_outcome(study, folder, options.recipe, options.overrides)
    if best is None:
        raise InputError(f"{folder}: no trial was completed; trials.csv says why")
    logger.info("Best %s: %.4f with %s", space.section.metric, best.value, ", ".join(as_overrides(best.params)))
    logger.info("Recipe: %s", folder / BEST_RECIPE_FILE)


def _check(resolved: ResolvedRecipe, space: SweepSpace, recipe: str, overrides: list[str]) -> None:
    """Find what would make every trial fail, before the first one."""
    metric, protocols = space.section.metric, task_of(resolved.recipe).protocols
    if metric not in protocols:
        near = did_you_mean(nearest_names(metric, protocols))
        raise InputError(f"{space.path}: metric: {metric!r} is not measured{near} (measured: {', '.join(protocols)})")
    if OBJECTIVE_SPLIT not in resolved.recipe.evaluation.splits:
        raise InputError(f"evaluation.splits: a sweep chooses by the {OBJECTIVE_SPLIT} split; add it")
    if "training.output_dir" in space.section.space:
        raise InputError(f"{space.path}: space.training.output_dir: each trial has a folder of its own; remove it")
    for key, value in space.extremes():
        try:
            load_recipe(recipe, [*overrides, *as_overrides({key: value})])
        except InputError as error:
            raise InputError(f"{space.path}: space.{key}: {str(error).splitlines()[0]}") from error


def train_trial(order: TrialOrder, callbacks: list[TrainerCallback]) -> None:
    """Train as `mmhf train` does; what that prints goes to `RUN_DIR.log`."""
    log = Path(order.run_dir).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(stream, descriptor)
    log_to_console()
    train(order.recipe, order.overrides, callbacks=callbacks)
