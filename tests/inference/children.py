"""Forked children that are killed before the n-th thing done to their files, or work at the same time.

Forked children need no second import, so that all steps can be tried. OMP_NUM_THREADS must be 1: a forked child cannot
use the threads that OpenMP started in its parent.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def in_child(work: Callable[[], object], output: Path, *, die_at: int = 0, counts_reads: bool = True) -> bool:
    """Whether the child came to its end; with `die_at` it is killed before the n-th thing done to its files."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), f"step {die_at}: the child failed"
        return status == 0
    left = die_at

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        reads = event == "open" and args[1] == "r" or event in ("os.listdir", "os.scandir")
        is_counted = counts_reads or not reads
        if is_counted and event.split(".")[0] in ("open", "os", "shutil") and output.name in f"{args[:2]}":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work()
    os._exit(0)


def share_in_children(work: Callable[[], int], folder: Path) -> list[int]:
    """The rows that each of three children did at once."""
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            (folder / f"{number}.rows").write_text(str(work()))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    return [int(path.read_text()) for path in folder.glob("*.rows")]
