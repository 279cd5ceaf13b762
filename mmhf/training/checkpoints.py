"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import re
from pathlib import Path

_MARKER = "complete"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path) -> None:
    """Say that every file of a checkpoint has been written, by every process."""
    (checkpoint / _MARKER).touch()


def last_complete_checkpoint(run_dir: Path) -> Path | None:
    """The latest checkpoint of a run that was written to its end; None when there is none."""
    found = {}
    for path in run_dir.glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match and (path / _MARKER).is_file():
            found[int(match.group(1))] = path
    return found[max(found)] if found else None
