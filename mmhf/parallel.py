"""Processes and threads: which process this is, what the others found, and work that threads share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.progress import track

from mmhf.errors import InputError, OtherProcessError

T = TypeVar("T")
R = TypeVar("R")

_LONGEST_CAUSE = 300
_MOST_THREADS = 16
_BUSY = 0.5
"""Share of its time that an item keeps the processor; above it, more threads than cores are in each other's way."""


def rank() -> int:
    """The number of this process, from 0, among those that `accelerate launch` started on all machines."""
    return int(PartialState().process_index)


def world_size() -> int:
    """How many processes there are on all machines together."""
    return int(PartialState().num_processes)


def gather(value: T) -> list[T]:
    """The value of each process, in the order of their ranks; every process has to call this."""
    gathered: Any = gather_object([value])
    return list(gathered)


@contextmanager
def failing_together() -> Iterator[None]:
    """Where one process fails, none goes on and none waits for it; every process has to enter this.

    Raises:
        Exception: In a process that failed: its own, with its traceback.
        InputError: In the others, if the first that failed raised it.
        OtherProcessError: In the others, if that raised anything else.
    """
    own: Exception | None = None
    told: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001  (raised below, once all know)
        own = told = error
        if not isinstance(error, InputError):  # as text: an exception of a library need not come whole out of a pickle
            said = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_CAUSE]
            told = OtherProcessError(
                f"the process of rank {rank()} failed ({said}), so all end; mend that and start again"
            )
    failures = [failure for failure in gather(told) if failure is not None]
    if failures:
        raise failures[0] if own is None else own


def from_first(decide: Callable[[], T]) -> T:
    """What the first process decides, for all of them; every process has to call this.

    Args:
        decide (`Callable`): Called in the first process alone.

    Raises:
        Exception: As of `failing_together`, where it raised one.
    """
    decided: list[Any] = [None]
    with failing_together():
        if rank() == 0:
            decided[0] = decide()
    broadcast_object_list(decided)
    result: T = decided[0]
    return result


def map_in_threads(
    function: Callable[[T], R], items: Sequence[T], *, label: str | None = None, threads: int | None = None
) -> Iterator[R]:
    """Apply a function to items in threads, for work that waits for disks and networks or decodes images.

    Args:
        function (`Callable`): What to apply.
        items (`Sequence`): To what. Threads take up all items at once and do not wait for who reads the results.
        label (`str`, *optional*): The title of a progress bar; absent: no bar.
        threads (`int`, *optional*): Absent: one for each core where the first item, which is tried alone, keeps the
            processor busy; where it waits, 16.

    Returns:
        `Iterator`: The results, in the order of the items.
    """
    tried: list[R] = []
    if threads is None and items:
        clock, processor = time.perf_counter(), time.thread_time()
        tried.append(function(items[0]))
        is_busy = time.thread_time() - processor > _BUSY * (time.perf_counter() - clock)
        threads = min(_MOST_THREADS, os.cpu_count() or 1) if is_busy else _MOST_THREADS
    with ThreadPoolExecutor(threads) as pool:
        results: Iterable[R] = chain(tried, pool.map(function, items[len(tried) :]))
        if label is not None:
            results = track(results, label, total=len(items), console=Console(stderr=True), transient=True)
        yield from results
