"""Run as a program: trains each recipe that a line of standard input names, in forked children that may be killed.

Imports take longer than a tiny run; forked children need none. Lines on standard output tell what a child is about to
do, so that whoever reads them can choose the moment: `start PID`, then `step N`, `evaluate N`, `save N` or `finish N`
after N optimizer steps, and at last `end CODE`, where -9 means killed. OMP_NUM_THREADS must be 1: forked children
cannot use the threads of their parent.
"""

from __future__ import annotations

import mmhf  # (first: it makes torchvision importable beside a CPU build of torch)

import os  # isort: skip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmhf.evaluation.report.classification
import mmhf.verbs.train
from mmhf.cli import main
from mmhf.training.trainer import MMTrainer

_METHODS = {"training_step": "step", "prediction_step": "evaluate", "_save_checkpoint": "save", "save_state": "finish"}


def say(line: str, stream: int = 1) -> None:
    os.write(stream, f"{line}\n".encode())


def announce(method: str, moment: str, stream: int) -> None:
    original: Callable[..., Any] = getattr(MMTrainer, method)

    def announced(self: MMTrainer, *args: Any, **kwargs: Any) -> Any:
        say(f"{moment} {self.state.global_step}", stream)
        return original(self, *args, **kwargs)

    setattr(MMTrainer, method, announced)


def train(recipe: str) -> int:
    for method, moment in _METHODS.items():
        announce(method, moment, os.dup(1))
    log = os.open(Path(recipe).with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return main(["train", recipe])


def serve() -> None:
    # Plots take most of the time of a tiny run.
    mmhf.evaluation.report.target_report.TargetReport.plots = lambda *args, **kwargs: {}
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.exit(train(line.strip()))
        say(f"start {child}")
        _, status = os.waitpid(child, 0)
        say(f"end {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    serve()
