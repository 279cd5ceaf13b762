"""The list of rows that were skipped or repaired, and why."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mmhf.files import write_csv

logger = logging.getLogger(__name__)

_SPLIT_ORDER = ("train", "validation", "test")


class BadExample(NamedTuple):
    """One row that could not be used as it is."""

    split: str
    row: int
    """Row number in the source file, from 1, the header not counted."""
    id: str
    reason: str


def _sort_key(example: BadExample) -> tuple[int, str, int, str]:
    known = example.split in _SPLIT_ORDER
    rank = _SPLIT_ORDER.index(example.split) if known else len(_SPLIT_ORDER)
    return rank, example.split, example.row, example.reason


class BadExampleLog:
    """A file that several processes append bad examples to.

    Args:
        path (`str` or `Path`):
            The file of JSON lines behind the log; it and its folder are made when the first example comes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def record(self, example: BadExample) -> None:
        """Append one example; a line is written at once, so lines of different processes never mix."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(example, ensure_ascii=False) + "\n"
        descriptor = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            os.write(descriptor, line.encode("utf-8", errors="backslashreplace"))
        finally:
            os.close(descriptor)

    def extend(self, examples: Iterable[BadExample]) -> None:
        """Append several examples."""
        for example in examples:
            self.record(example)

    def read(self) -> list[BadExample]:
        """Read what was recorded, each example once, by split and row."""
        if not self.path.exists():
            return []
        examples = set()
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                examples.add(BadExample(*json.loads(line)))
            except (ValueError, TypeError, RecursionError):  # the last line of a process that was killed
                if line:
                    logger.warning("%s: a line that cannot be read is left out", self.path)
        return sorted(examples, key=_sort_key)

    def write_csv(self, path: str | Path) -> None:
        """Write the examples, each once, as CSV with the columns split, row, id, reason.

        Args:
            path (`str` or `Path`):
                The file; it appears complete or not at all.
        """
        write_csv(path, BadExample._fields, self.read())
