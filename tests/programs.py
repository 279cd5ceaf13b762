"""Programs that tests start: `mmhf VERB …` in processes of their own.

Importing takes longer than a tiny run, so they are forked from one process that has imported everything and has never
had a second thread. What a user types is started in a few tests alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "mmhf",  # (first: it makes torchvision importable beside a CPU build of torch)
        *(f"mmhf.verbs.{verb}" for verb in ("cache", "embed", "evaluate", "predict", "release", "sweep", "train")),
        "matplotlib.backends.backend_agg",
        "programs",
    ]
)
_LONGEST = 600.0


class Program:
    """A running `mmhf VERB …`.

    Args:
        *arguments: The verb and what follows it.
        **environment (`str`): Variables that it has beside this process's.

    Attributes:
        pid (`int`): Of the process, which leads a group of its own.
    """

    def __init__(self, *arguments: object, **environment: str) -> None:
        handle, name = tempfile.mkstemp(suffix=".log")
        os.close(handle)
        self._log = Path(name)
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        words = [str(argument) for argument in arguments]
        self._process = _CONTEXT.Process(target=_become, args=(words, variables, os.getcwd(), name), daemon=False)
        with _one_thread():
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        """What it has written so far to either stream."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float = _LONGEST) -> int:
        """Wait for its end; gives the exit code, or the negative signal."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {seconds:.0f} s:\n{self.output}")
        return self._process.exitcode

    def wait_until(self, condition: Callable[[], bool], seconds: float = _LONGEST) -> None:
        """Wait until something has come about while it runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._process.is_alive() and time.monotonic() < deadline, self.output
            time.sleep(0.01)

    def send(self, number: int) -> None:
        """Send a signal to it and to all that it has started, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it, and all that it has started, at once."""
        self.send(signal.SIGKILL)
        self._process.join()


def run_together(*arguments: object, num_processes: int) -> None:
    """Run `mmhf VERB …` in several processes that know of each other, as a launcher starts them on one machine."""
    programs = [Program(*arguments, **environment) for environment in _environments(num_processes)]
    codes = [program.wait() for program in programs]
    assert codes == [0] * num_processes, "\n".join(program.output for program in programs)


def call_together(function: Callable[[int], T], num_processes: int, seconds: float = 60.0) -> list[T]:
    """What a function, of a module in `tests/`, gives for the ranks of several processes that know of each other.

    Raises:
        queue.Empty: One of them gave nothing in time.
    """
    answers = _CONTEXT.Queue()
    processes = [
        _CONTEXT.Process(target=_answer, args=(function, environment, answers))
        for environment in _environments(num_processes)
    ]
    with _one_thread():
        for process in processes:
            process.start()
    try:
        found = dict(answers.get(timeout=seconds) for _ in processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [found[rank] for rank in range(num_processes)]


def _environments(num_processes: int) -> list[dict[str, str]]:
    """What a launcher tells the processes of one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """What OpenMP reads when it is loaded, in the process that all programs are forked from."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        forkserver.ensure_running()
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _answer(function: Callable[[int], T], environment: dict[str, str], answers: Queue[tuple[int, T]]) -> None:
    """In the forked process: call the function for its rank."""
    os.environ.update(environment)
    rank = int(environment["RANK"])
    answers.put((rank, function(rank)))
    answers.join_thread()  # what is not sent yet is lost when this process is killed


def _become(arguments: list[str], environment: dict[str, str], folder: str, log: str) -> None:
    """In the forked process: be the program, from its streams to its exit code."""
    from mmhf.__main__ import main

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stream = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.exit(main(arguments))
