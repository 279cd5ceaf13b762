"""What campaigns share: verbs that run in forked children and are disturbed there, and the table of verdicts.

Importing takes longer than a tiny run; a forked child needs no import. So this process must have one thread when it
forks, and OMP_NUM_THREADS must be 1.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mmhf.__main__ import main

TRACEBACK = "Traceback (most recent call last)"
_LONGEST = 300.0
_ANSWERED = {signal.SIGINT, signal.SIGTERM}
"""Held back from a child until it is ready to answer them as a program does."""


@dataclass
class Tally:
    """Verdicts of one campaign: `same`, the result is what it would have been; `told`, in a line; or neither."""

    name: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("same", "told", "silent", "traceback"), 0))
    notes: list[str] = field(default_factory=list)
    all: ClassVar[list[Tally]] = []
    """Those of this process, so that a campaign that is stopped can still be told."""

    def __post_init__(self) -> None:
        self.all.append(self)

    def count(self, verdict: str, note: str) -> None:
        """Count a trial; what should not be is noted, and told at once."""
        self.counts[verdict] += 1
        if verdict in ("silent", "traceback"):
            self.notes.append(f"{verdict}: {note}")
            sys.stderr.write(f"{self.notes[-1]}\n")

    @property
    def tried(self) -> int:
        """Trials so far."""
        return sum(self.counts.values())


def table(tallies: Sequence[Tally]) -> str:
    """The tallies as lines of a Markdown table."""
    lines = ["| campaign | tried | same result | told | silent | traceback |", "|---|---|---|---|---|---|"]
    for tally in tallies:
        lines.append("| " + " | ".join([tally.name, str(tally.tried), *map(str, tally.counts.values())]) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Result:
    """How a child ended: exit code, or the negative signal, what it printed, and how long it took."""

    code: int
    output: str
    seconds: float
    cpu_seconds: float = 0.0

    def verdict(self, is_same: bool, name: str = "") -> str:
        """The verdict on a verb that ran to its end.

        Args:
            is_same (`bool`): Whether what it made is what it would have been.
            name (`str`): A file that a warning may name instead.
        """
        if TRACEBACK in self.output:
            return "traceback"
        if self.code != 0:
            return "told" if "error: " in self.output else "silent"
        return "same" if is_same else "told" if name and name in self.output else "silent"


@dataclass(frozen=True)
class Disturbance:
    """What happens to a child.

    Args:
        signals (`tuple[tuple[float, int], ...]`): Each with the second at which it is sent, in their order.
        file_size (`int`, *optional*): No file may become larger.
    """

    signals: tuple[tuple[float, int], ...] = ()
    file_size: int | None = None


def run(
    arguments: Sequence[object], folder: Path, disturbance: Disturbance | None = None, *, is_fresh: bool = False
) -> Result:
    """Run `mmhf VERB ...` in a child whose working directory is a folder.

    Args:
        arguments (`Sequence`): The verb and what follows it.
        folder (`Path`): Where it runs.
        disturbance ([`Disturbance`], *optional*): What happens to it.
        is_fresh (`bool`, defaults to `False`): The child starts Python anew, as a user does; absent: it is forked, and
            needs no import.
    """
    disturbance, started = disturbance or Disturbance(), time.monotonic()
    read, write = os.pipe()
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, _ANSWERED)
    pid = os.fork()
    if pid == 0:
        _be_child([str(argument) for argument in arguments], folder, disturbance, write, is_fresh)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ANSWERED)
    os.close(write)
    output, signals = [], list(disturbance.signals)
    with contextlib.closing(os.fdopen(read, "rb", buffering=0)) as stream:
        while True:
            wait = max(started + signals[0][0] - time.monotonic(), 0) if signals else 0.5
            if select.select([stream], [], [], wait)[0]:
                if not (part := stream.read(65536)):
                    break
                output.append(part)
            elif signals:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signals.pop(0)[1])
            elif time.monotonic() - started > _LONGEST:
                os.killpg(pid, signal.SIGABRT)
    _, status, usage = os.wait4(pid, 0)
    text = b"".join(output).decode(errors="replace")
    return Result(os.waitstatus_to_exitcode(status), text, time.monotonic() - started, usage.ru_utime + usage.ru_stime)


def _be_child(arguments: list[str], folder: Path, disturbance: Disturbance, write: int, is_fresh: bool) -> None:
    code = 70
    try:
        os.setsid()
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(folder)
        os.environ["MMHF_FEATURES"] = str(folder / "features")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which who started us may have had ignored
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the campaigns' own is not a verb's
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ANSWERED)
        if disturbance.file_size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (disturbance.file_size, resource.RLIM_INFINITY))
        if is_fresh:
            os.execv(sys.executable, [sys.executable, "-m", "mmhf", *arguments])
        code = main(arguments)
    except BaseException:  # noqa: BLE001  (the child ends here, whatever it was)
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes in place of an empty folder, until the block ends; `OSError` where we may not mount."""
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_room(folder: Path) -> None:
    """The small disk in a folder becomes large."""
    _mount("-o", "remount,size=1g", str(folder))


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())


def disk_usage(folder: Path) -> int:
    """Bytes that a folder occupies."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
