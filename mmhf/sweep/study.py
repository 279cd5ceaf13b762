"""One study that several processes or machines work on: who runs which trial, and whose trials were left behind.

Optuna's storages offer two operations that cannot be raced: a trial is created with its number and attributes in one
step, and only one process can be the first to finish it. All that follows rests on these:

- The n-th trial of a sweep is the n-th that was created and is no retry; what is above the wanted number is dropped.
- A running trial carries its worker and a heartbeat. When its worker is gone, another one creates a retry with the
  same values, already its own, and then finishes the old trial; whoever comes second drops its retry.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mmhf.errors import DamagedError, InputError
from mmhf.sweep.space import ParameterValue, SweepSpace

WORKER, HEARTBEAT = "worker", "heartbeat"
ROOT = "retry_of"
DROPPED = "dropped"
"""Why a trial that failed does not count: another one took its place."""
_SURPLUS = "surplus"
_LOCK_GRACE = 10


@dataclass(frozen=True)
class Patience:
    """When a worker is taken for dead, in seconds.

    Args:
        heartbeat (`float`, defaults to 5): Between two signs of life.
        here (`float`, defaults to 15): Without one, if its process on this machine has ended.
        elsewhere (`float`, defaults to 300): Without one, on any machine.
    """

    heartbeat: float = 5.0
    here: float = 15.0
    elsewhere: float = 300.0


class SharedStudy:
    """A study in a storage that other processes use at the same time.

    Args:
        storage (`str`): `sqlite:///FILE`, another database's URL, or the path of a journal file, which is made.
        name (`str`): The study's name in it.
        space (`SweepSpace`): What is searched.
        recipe (`str`): The recipe as YAML, without the values that are searched.
        patience (`Patience`, *optional*): When trials of others are taken over.

    Raises:
        InputError: The storage cannot be used, or the study was begun with another space or recipe.
    """

    def __init__(
        self, storage: str, name: str, *, space: SweepSpace, recipe: str, patience: Patience | None = None
    ) -> None:
        self.name, self.space, self.patience = name, space, patience or Patience()
        self.storage = _open_storage(storage)
        self.worker = _describe_process(os.getpid())
        self._begin(recipe)

    def _begin(self, recipe: str) -> None:
        study = optuna.create_study(
            study_name=self.name,
            storage=self.storage,
            direction="maximize" if self.space.is_maximized else "minimize",
            load_if_exists=True,
        )
        self._study_id = self.storage.get_study_id_from_name(self.name)
        identity = {"space": json.dumps(self.space.identity(), sort_keys=True), "recipe": recipe}
        for part, text in identity.items():
            if study.user_attrs.get(part, text) != text:
                raise InputError(
                    f"study {self.name!r} was begun with another {part}; go back to it, or choose another --study"
                )
            study.set_user_attr(part, text)

    def load(self, number: int = 0) -> Study:
        """The study as it is now. The sampler's seed depends on the place in the sweep: no two workers propose alike.

        What is tried again, because its worker was killed before it chose, is so given the same values again.
        """
        section, place = self.space.section, self.ordinal(number)
        seed = section.seed * 100_003 + place
        sampler: BaseSampler
        if section.sampler == "tpe":
            sampler = TPESampler(seed=seed, constant_liar=True)
        elif section.sampler == "random":
            sampler = RandomSampler(seed=seed)
        else:
            sampler = _GridPoint(self.space.grid(), place)
        return optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler, pruner=self._pruner())

    def _pruner(self) -> optuna.pruners.BasePruner:
        pruner = self.space.section.pruner
        if pruner is None:
            return optuna.pruners.NopPruner()
        if pruner.kind == "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=max(pruner.warmup_epochs, 1))
        # Optuna spares the steps below its warm-up; epochs count from 1.
        return optuna.pruners.MedianPruner(pruner.startup_trials, pruner.warmup_epochs + 1)

    def trials(self) -> list[FrozenTrial]:
        """The trials that count, in the order of their numbers."""
        return [trial for trial in self._all() if not (DROPPED in trial.user_attrs and trial.state == TrialState.FAIL)]

    def _all(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self._study_id, deepcopy=False)

    def _originals(self) -> list[FrozenTrial]:
        return [each for each in self._all() if ROOT not in each.user_attrs and _SURPLUS not in each.user_attrs]

    def ordinal(self, number: int) -> int:
        """Which trial of the sweep this is, from 0; retries count as what they retry."""
        root = next((root_of(trial) for trial in self._all() if trial.number == number), number)
        return sum(trial.number < root for trial in self._originals())

    def next_trial(self, num_trials: int) -> Trial | None:
        """A trial for this process: a retry of one that was left behind, or a new one; None if there is none."""
        trial = self._take_over()
        if trial is not None or len(self._originals()) >= num_trials:
            return trial
        trial = self._create({})
        if self.ordinal(trial.number) < num_trials:
            return self._with_values(trial)
        trial.set_user_attr(_SURPLUS, True)
        self._drop(trial, "more trials than wanted")
        return None

    def is_finished(self) -> bool:
        """Whether no trial is running, here or elsewhere."""
        return all(trial.state.is_finished() for trial in self.trials())

    def _create(
        self,
        attributes: Mapping[str, Any],
        params: Mapping[str, Any] | None = None,
        distributions: Mapping[str, BaseDistribution] | None = None,
        intermediate_values: Mapping[int, float] | None = None,
    ) -> Trial:
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(params or {}),
            distributions=dict(distributions or {}),
            user_attrs={WORKER: self.worker, HEARTBEAT: time.time(), **attributes},
            intermediate_values=dict(intermediate_values or {}),
        )
        trial_id = self.storage.create_new_trial(self._study_id, template_trial=template)
        number = self.storage.get_trial_number_from_id(trial_id)
        return Trial(self.load(number), trial_id)

    def _with_values(self, trial: Trial) -> Trial:
        """Choose what has not been chosen yet."""
        for key, distribution in self.space.distributions().items():
            if isinstance(distribution, optuna.distributions.CategoricalDistribution):
                trial.suggest_categorical(key, distribution.choices)
            elif isinstance(distribution, optuna.distributions.IntDistribution):
                trial.suggest_int(
                    key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
                )
            elif isinstance(distribution, optuna.distributions.FloatDistribution):
                trial.suggest_float(
                    key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
                )
        return trial

    def _take_over(self) -> Trial | None:
        trials = self.trials()
        stale = [trial for trial in trials if self._is_left_behind(trial)]
        for left in stale:
            root = root_of(left)
            states = {other.state for other in trials if root_of(other) == root and self._counts(other)}
            if states - {TrialState.RUNNING}:
                self._finish(left, "another trial ran it to its end")
            # The worker of one that runs is about to finish this one; it would give up if somebody else did.
            if states:
                continue
            if left.params.keys() >= self.space.distributions().keys():
                retry = self._create({ROOT: root}, left.params, left.distributions, left.intermediate_values)
            else:  # it was killed while it chose: all is chosen again, in the same order
                retry = self._create({ROOT: root})
            if self._finish(left, f"its worker {left.user_attrs.get(WORKER)} is gone"):
                return self._with_values(retry)
            self._drop(retry, "another worker was faster")
        return None

    def _counts(self, trial: FrozenTrial) -> bool:
        if trial.state == TrialState.RUNNING:
            return not self._is_left_behind(trial)
        return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)

    def _is_left_behind(self, trial: FrozenTrial) -> bool:
        if trial.state != TrialState.RUNNING or trial.user_attrs.get(WORKER) == self.worker:
            return False
        silent_for = time.time() - float(trial.user_attrs[HEARTBEAT])
        if silent_for > self.patience.elsewhere:
            return True
        return silent_for > self.patience.here and _has_ended(trial.user_attrs[WORKER])

    def _finish(self, trial: FrozenTrial, reason: str) -> bool:
        """Take a trial that was left behind out of the study; False if somebody else was first."""
        try:
            trial_id = self._id_of(trial)
            self.storage.set_trial_user_attr(trial_id, DROPPED, reason)
            return self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return False

    def _drop(self, trial: Trial, reason: str) -> None:
        trial.set_user_attr(DROPPED, reason)
        self.storage.set_trial_state_values(self._id_of(trial), TrialState.FAIL)

    def _id_of(self, trial: Trial | FrozenTrial) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)


class _GridPoint(BaseSampler):
    """Gives a trial the values of its own point, so that no point is tried twice however many processes there are.

    Optuna's GridSampler (5.0) lets parallel workers try points twice, as its documentation says.
    """

    def __init__(self, grid: Sequence[Mapping[str, ParameterValue]], ordinal: int) -> None:
        self._point = grid[ordinal] if ordinal < len(grid) else {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._point[param_name]


def root_of(trial: FrozenTrial) -> int:
    """The number of the trial that this one retries, or its own."""
    return int(trial.user_attrs.get(ROOT, trial.number))


def _open_storage(place: str) -> BaseStorage:
    if "://" in place:
        try:
            # SQLite's own 5 s are short for many processes.
            return get_storage(
                RDBStorage(
                    place, engine_kwargs={"connect_args": {"timeout": 60}} if place.startswith("sqlite") else None
                )
            )
        except (ImportError, ValueError, SQLAlchemyError, StorageInternalError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"--storage {place}: cannot be used ({reason})") from error
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lock by O_EXCL works on network file systems too, where many refuse the links of the default lock.
    # It is held for milliseconds: whoever holds it for long was killed.
    lock = JournalFileOpenLock(str(path), grace_period=_LOCK_GRACE)
    lock.acquire()
    try:
        _mend_journal(path)
    finally:
        lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _mend_journal(path: Path) -> None:
    """Take away half a last line, which a killed process or a full disk leaves and Optuna 5.0 would append to.

    Raises:
        DamagedError: Another line is no entry.
    """
    if not path.is_file():
        return
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            is_entry = "op_code" in json.loads(line)
        except (ValueError, TypeError, RecursionError):
            is_entry = False
        if not is_entry:
            raise DamagedError(
                f"{path}: line {number} is damaged; restore the file, or remove it with the folder `trials` beside it "
                "to search anew"
            )
    if rest:
        os.truncate(path, path.stat().st_size - len(rest))


def _describe_process(pid: int) -> str:
    """`HOST:PID:START`; the start tells a process from a later one with the same number."""
    return f"{socket.gethostname()}:{pid}:{_start_time(pid)}"


def _start_time(pid: int) -> str:
    try:
        # Linux' proc_pid_stat(5): the second field, the command, may hold blanks and ends with the last ')'.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "?"
    return "ended" if state in ("Z", "X") else fields[18]


def _has_ended(worker: str) -> bool:
    """Whether a worker on this machine is no longer there."""
    host, _, process = worker.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs under another name
        pass
    return _describe_process(int(process)) != worker
