"""The training of one trial of a sweep, in the process that is made for it."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from transformers import TrainerCallback

from mmhf.cli import train
from mmhf.cli._console import ConsoleHandler
from mmhf.sweep.trial_process import TrialOrder


def train_trial(order: TrialOrder, callbacks: list[TrainerCallback]) -> None:
    """Train as `mmhf train` does; what that prints goes to `RUN_DIR.log`."""
    log = Path(order.run_dir).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(stream, descriptor)
    logger = logging.getLogger("mmhf")
    logger.setLevel(logging.INFO)
    logger.handlers = [ConsoleHandler()]
    options = argparse.Namespace(recipe=order.recipe, overrides=order.overrides, resume=False, allow_changes=False)
    train.run(options, callbacks)
