"""The loop of one sweep process: take a trial, train it, report it to the study, until there are no more."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from mmhf.damage import find_damage
from mmhf.files import METRICS_FILE, RECIPE_FILE, TRAINER_STATE_FILE, read_json_object
from mmhf.recipe import load_recipe
from mmhf.sweep.space import as_overrides
from mmhf.sweep.study import HEARTBEAT, SharedStudy
from mmhf.sweep.trial_process import Train, TrialOrder, TrialOutcome, evaluated_epoch, run_trial

logger = logging.getLogger(__name__)

ERROR = "error"
"""User attribute of a trial: why it failed."""
OBJECTIVE_SPLIT = "validation"


@dataclass(frozen=True)
class Worker:
    """Runs trials of a study, one after the other.

    Args:
        study (`SharedStudy`): The study.
        train (`Callable`): Trains one trial, see `run_trial`.
        recipe (`str`): The recipe's file.
        overrides (`Sequence[str]`): For all trials.
        folder (`Path`): Holds `trials/NUMBER`, a run folder each; numbers count from 0, a retry has that of what it
            retries. Workers on several machines that share it can go on from the checkpoints of a killed one.
        num_trials (`int`): Of all workers together.
    """

    study: SharedStudy
    train: Train
    recipe: str
    overrides: Sequence[str]
    folder: Path
    num_trials: int

    def run(self) -> None:
        """Work until all trials are done, including those of other workers: if one dies, its trial is run here."""
        is_waiting = False
        while True:
            trial = self.study.next_trial(self.num_trials)
            if trial is not None:
                self._run_trial(trial)
                is_waiting = False
            elif self.study.is_finished():
                return
            else:
                if not is_waiting:
                    logger.info("No trial left to start; waiting for those of other workers")
                is_waiting = True
                time.sleep(self.study.patience.heartbeat)

    def _run_trial(self, trial: Trial) -> None:
        number = self.study.ordinal(trial.number)
        run_dir = self.folder / "trials" / f"{number:04d}"
        logger.info("Trial %d: %s", number, ", ".join(as_overrides(trial.params)))
        try:
            with self._heartbeats(trial):
                outcome, value = self._train_or_read(trial, run_dir)
                self._tell(trial, number, outcome, value)
        except UpdateFinishedTrialError:
            logger.warning("Trial %d: another worker took it over while this one was silent", number)
            return
        for checkpoint in run_dir.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

    def _train_or_read(self, trial: Trial, run_dir: Path) -> tuple[TrialOutcome, float | None]:
        """Train, unless a worker did so and was killed before it could report the result."""
        if not (run_dir / METRICS_FILE).is_file():
            outcome = self._train(trial, run_dir)
            if outcome.is_pruned or outcome.error:
                return outcome, None
        elif other := self._other_values(trial, run_dir):
            return TrialOutcome(error=f"{run_dir} holds a run with other values ({other}); remove it"), None
        if (damage := find_damage(run_dir)) is not None:
            return TrialOutcome(error=f"{run_dir}: {damage}; remove the folder"), None
        metric = self.study.space.section.metric
        state = run_dir / TRAINER_STATE_FILE
        for entry in read_json_object(state).get("log_history", []) if state.is_file() else ():
            if f"eval_{metric}" in entry:  # what the journal lost, or a worker that was killed did not report
                _report(trial, evaluated_epoch(entry.get("epoch")), float(entry[f"eval_{metric}"]))
        name = f"{OBJECTIVE_SPLIT}_{metric}"
        value = read_json_object(run_dir / METRICS_FILE).get(name)
        if value is None:
            return TrialOutcome(error=f"{run_dir / METRICS_FILE} has no number for {name}"), None
        return TrialOutcome(), float(value)

    def _other_values(self, trial: Trial, run_dir: Path) -> str | None:
        """What a finished run was trained with that is not this trial's value: the journal may have been lost."""
        if not (run_dir / RECIPE_FILE).is_file():
            return None
        wanted = load_recipe(self.recipe, [*self.overrides, *as_overrides(trial.params)]).leaves()
        found = load_recipe(run_dir / RECIPE_FILE).leaves()
        differing = [key for key in trial.params if found.get(key) != wanted.get(key)]
        return f"{differing[0]}={found.get(differing[0])}" if differing else None

    def _train(self, trial: Trial, run_dir: Path) -> TrialOutcome:
        values = [*as_overrides(trial.params), f"training.output_dir={json.dumps(str(run_dir))}"]
        order = TrialOrder(self.recipe, [*self.overrides, *values], str(run_dir), self.study.space.section.metric)

        def should_prune(epoch: int, value: float) -> bool:
            _report(trial, epoch, value)
            return bool(trial.should_prune())

        return run_trial(self.train, order, should_prune)

    def _tell(self, trial: Trial, number: int, outcome: TrialOutcome, value: float | None) -> None:
        trial.set_user_attr(HEARTBEAT, time.time())  # refused if the trial was taken over
        if outcome.error:
            trial.set_user_attr(ERROR, outcome.error)
            trial.study.tell(trial, state=TrialState.FAIL)
            logger.warning("Trial %d failed: %s", number, outcome.error)
        elif outcome.is_pruned:
            trial.study.tell(trial, state=TrialState.PRUNED)
            logger.info("Trial %d: stopped early", number)
        else:
            trial.study.tell(trial, value)
            logger.info("Trial %d: %s %.4f", number, self.study.space.section.metric, value)

    @contextmanager
    def _heartbeats(self, trial: Trial) -> Iterator[None]:
        """Report every few seconds that the trial is running."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.study.patience.heartbeat):
                try:
                    trial.set_user_attr(HEARTBEAT, time.time())
                except UpdateFinishedTrialError:
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _report(trial: Trial, epoch: int, value: float) -> None:
    """Note what an epoch came to, once: Optuna warns of a second time."""
    if epoch not in trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
        trial.report(value, epoch)
