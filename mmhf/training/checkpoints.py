"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel

# How torch.save reports that a file could not be written.
_TORCH_WRITE_FAILURES = ("inline_container.cc", "iostream error")
_MARKER = "complete"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_path(run_dir: Path, global_step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return run_dir / f"checkpoint-{global_step}"


def mark_complete(checkpoint: Path) -> None:
    """Say that every file of a checkpoint has been written, by every process."""
    (checkpoint / _MARKER).touch()


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
        if not (checkpoint() / _MARKER).is_file():
            shutil.rmtree(checkpoint(), ignore_errors=True)
        raise


def last_complete_checkpoint(run_dir: Path) -> Path | None:
    """The latest checkpoint of a run that was written to its end; None when there is none."""
    return next(iter(complete_checkpoints(run_dir)), None)


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run that were written to their end, the latest first."""
    found = {}
    for path in run_dir.glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match and (path / _MARKER).is_file():
            found[int(match.group(1))] = path
    return [found[step] for step in sorted(found, reverse=True)]
