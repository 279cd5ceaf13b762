"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

# How torch.save reports that a file could not be written.
_TORCH_WRITE_FAILURES = ("inline_container.cc", "iostream error")
_MARKER = "complete"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path) -> None:
    """Say that every file of a checkpoint has been written, by every process."""
    (checkpoint / _MARKER).touch()


@contextlib.contextmanager
def failed_writes_as_os_errors(folder: str | Path) -> Iterator[None]:
    """Raise `OSError` where safetensors and torch report by errors of their own that a file could not be written."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _TORCH_WRITE_FAILURES):
            raise
        raise OSError(f"{folder}: cannot be written, is the disk full? ({str(error).splitlines()[0]})") from error


@contextlib.contextmanager
def removed_if_unwritable(checkpoint: Path) -> Iterator[None]:
    """Take away what was written of a checkpoint when a file of it cannot be written."""
    try:
        with failed_writes_as_os_errors(checkpoint):
            yield
    except OSError:
        shutil.rmtree(checkpoint, ignore_errors=True)
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
