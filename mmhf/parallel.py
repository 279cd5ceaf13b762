"""Processes and threads: which process this is, what the others found, and work that threads share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import track

from mmhf.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

_MOST_THREADS = 16


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


def first_error(own: InputError | None) -> InputError | None:
    """The error of the first process that has one, so that all react alike; every process has to call this."""
    return next((error for error in gather(own) if error is not None), None)


def map_in_threads(
    function: Callable[[T], R], items: Sequence[T], *, label: str | None = None, threads: int | None = None
) -> Iterator[R]:
    """Apply a function to items in threads, for work that waits for disks and networks or decodes images.

    Args:
        function (`Callable`): What to apply.
        items (`Sequence`): To what. Threads take up all items at once and do not wait for who reads the results.
        label (`str`, *optional*): The title of a progress bar; absent: no bar.
        threads (`int`, *optional*): Absent: two for each core, at most 16.

    Returns:
        `Iterator`: The results, in the order of the items.
    """
    with ThreadPoolExecutor(threads or min(_MOST_THREADS, 2 * (os.cpu_count() or 1))) as pool:
        results: Iterable[R] = pool.map(function, items)
        if label is not None:
            results = track(results, label, total=len(items), console=Console(stderr=True), transient=True)
        yield from results
