"""Runs each trial in a separate process, so that it leaves no state behind and a crash does not stop the sweep."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmhf.errors import InputError

_KILL_AFTER = 30.0

# A fork server has imported everything already, so that a trial starts at once; Windows has none.
if sys.platform == "win32":
    _CONTEXT = multiprocessing.get_context("spawn")
else:
    _CONTEXT = multiprocessing.get_context("forkserver")

Train = Callable[["TrialOrder", list[TrainerCallback]], None]
"""Trains, with callbacks, one recipe with one trial's values; raises `InputError` for what cannot be trained."""


class PrunedTrialError(Exception):
    """Ends the training of a trial that the sweep has pruned."""


@dataclass(frozen=True)
class TrialOrder:
    """What a trial is to do.

    Args:
        recipe (`str`): The recipe's file.
        overrides (`list[str]`): The user's, the trial's values, and where it runs.
        run_dir (`str`): The run folder.
        metric (`str`): What is reported after each evaluation, without a split.
    """

    recipe: str
    overrides: list[str]
    run_dir: str
    metric: str


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended: pruned, with an error, or, if neither, well."""

    is_pruned: bool = False
    error: str | None = None


def evaluated_epoch(epoch: float | None) -> int:
    """The epoch that an evaluation counts for, from 1."""
    return max(1, round(epoch or 0))


class ReportEvaluations(TrainerCallback):
    """Sends each epoch's metric to the sweep and ends the training when the answer says so."""

    def __init__(self, metric: str, connection: Connection) -> None:
        self.metric = metric
        self.connection = connection

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        value = (metrics or {}).get(f"eval_{self.metric}")
        if value is None or not state.is_world_process_zero:
            return
        self.connection.send((evaluated_epoch(state.epoch), float(value)))
        if self.connection.recv():
            raise PrunedTrialError


def run_trial(train: Train, order: TrialOrder, should_prune: Callable[[int, float], bool]) -> TrialOutcome:
    """Run one trial in a separate process and wait for it.

    Args:
        train (`Callable`): A function at the top of a module, which the process imports.
        order (`TrialOrder`): Handed to it.
        should_prune (`Callable[[int, float], bool]`): Epoch and value of each evaluation -> whether to stop. What it
            raises ends the trial's process and is passed on.
    """
    ours, theirs = _CONTEXT.Pipe()
    # Not a daemon: its data loaders may have workers of their own.
    process = _CONTEXT.Process(target=_run, args=(train, order, theirs), name=f"trial {order.run_dir}")
    process.start()
    theirs.close()
    try:
        return _listen(ours, process, should_prune)
    finally:
        ours.close()
        if process.is_alive():
            process.terminate()
            process.join(_KILL_AFTER)
            process.kill()
        process.join()


def preload(module: str) -> None:
    """Import a module once in the server that trials are forked from."""
    _CONTEXT.set_forkserver_preload([module])


def _listen(
    connection: Connection, process: multiprocessing.process.BaseProcess, should_prune: Callable[[int, float], bool]
) -> TrialOutcome:
    try:
        while not isinstance(message := connection.recv(), TrialOutcome):
            connection.send(should_prune(*message))
    except (EOFError, ConnectionResetError, BrokenPipeError):
        process.join()
        return TrialOutcome(error=f"its process ended with code {process.exitcode}")
    process.join()
    return message


def _run(train: Train, order: TrialOrder, connection: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        train(order, [ReportEvaluations(order.metric, connection)])
    except PrunedTrialError:
        connection.send(TrialOutcome(is_pruned=True))
    except (InputError, OSError) as error:
        connection.send(TrialOutcome(error=str(error).strip().splitlines()[0]))
    else:
        connection.send(TrialOutcome())


def _end_with_parent() -> None:
    """Stop at once when the sweep is killed, because another worker takes the trial over in the same run folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
