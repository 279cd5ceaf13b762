"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from mmhf.damage import COMPLETE_FILE, find_damage
from mmhf.errors import InputError

logger = logging.getLogger(__name__)

# How torch.save reports that a file could not be written.
_TORCH_WRITE_FAILURES = ("inline_container.cc", "iostream error")
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_path(run_dir: Path, global_step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return run_dir / f"checkpoint-{global_step}"


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that were done when a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


@contextlib.contextmanager
def failed_writes_as_os_errors(folder: Path | Callable[[], Path]) -> Iterator[None]:
    """Raise `OSError` where safetensors and torch report by errors of their own that a file could not be written."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _TORCH_WRITE_FAILURES):
            raise
        path = folder() if callable(folder) else folder
        raise OSError(f"{path}: cannot be written, is the disk full? ({str(error).splitlines()[0]})") from error


@contextlib.contextmanager
def saved_under_own_names(model: PreTrainedModel, wanted: bool = True) -> Iterator[None]:
    """Let a model save its weights by the names they have now, if that is wanted.

    transformers 5.24 saves ViT and other encoders by the names that they had before version 5, and Trainer reads a
    checkpoint back without translating them: it would go on with other weights (docs/upstream/renamed_weights.py).
    """
    if not wanted:
        yield
        return
    model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.save_pretrained


@contextlib.contextmanager
def removed_if_unwritable(checkpoint: Callable[[], Path]) -> Iterator[None]:
    """Take away what was written of a checkpoint when a file of it cannot be written.

    Args:
        checkpoint (`Callable`): Gives the one that would be written now.

    Raises:
        OSError: A file cannot be written.
    """
    try:
        with failed_writes_as_os_errors(checkpoint):
            yield
    except OSError:
        if not (checkpoint() / COMPLETE_FILE).is_file():
            shutil.rmtree(checkpoint(), ignore_errors=True)
        raise


def last_complete_checkpoint(run_dir: Path) -> Path | None:
    """The latest checkpoint of a run that was written to its end and is as it was written; None when there is none.

    Raises:
        InputError: All checkpoints are damaged.
    """
    damages = []
    for checkpoint in complete_checkpoints(run_dir):
        if (damage := find_damage(checkpoint)) is None:
            return checkpoint
        logger.warning("%s: %s; an earlier checkpoint is taken, if there is one", checkpoint, damage)
        damages.append(f"{checkpoint.name}: {damage}")
    if damages:
        raise InputError(
            f"{run_dir}: no checkpoint is whole any more ({'; '.join(damages)}); remove the folder to train anew"
        )
    return None


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run that were written to their end, the latest first."""
    found = {}
    for path in run_dir.glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match and (path / COMPLETE_FILE).is_file():
            found[int(match.group(1))] = path
    return [found[step] for step in sorted(found, reverse=True)]


def is_finite(checkpoint: Path) -> bool:
    """Whether all weights of a checkpoint are numbers; sharded ones, which are not looked at, count as good."""
    path = checkpoint / SAFE_WEIGHTS_NAME
    if not path.is_file():
        return True
    with safe_open(path, framework="pt") as weights:
        return all(bool(weights.get_tensor(name).isfinite().all()) for name in weights.keys())  # noqa: SIM118
