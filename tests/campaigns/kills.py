"""Every verb is stopped at random moments, in every way; the same command then ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from trials import Disturbance, Result, Tally, make_room, run, small_disk
from world import VERBS, World

_NAMES = {
    "SIGKILL": "stopped by SIGKILL",
    "SIGTERM": "stopped by SIGTERM",
    "SIGINT": "stopped by SIGINT",
    "SIGINT twice": "stopped by SIGINT twice",
    "file size": "files cut by a limit",
    "full disk": "a full disk",
}
WAYS = tuple(_NAMES)
_SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
_FRESH_VERBS = ("train", "predict", "embed", "evaluate", "release")
_LARGEST = 300_000
"""Bytes of the largest files that the verbs write here."""


def kill_campaign(world: World, scratch: Path, num_trials: int, generator: random.Random) -> list[Tally]:
    """Disturb verbs in forked children and run them again.

    Args:
        world ([`World`]): The small world.
        scratch (`Path`): For what the verbs make.
        num_trials (`int`): Disturbances; verbs and ways take turns, and 48 try each verb in each way.
        generator (`random.Random`): Chooses moments and sizes.
    """
    tallies = {way: Tally(name) for way, name in _NAMES.items()}
    for number in range(num_trials):
        verb, way = VERBS[number % len(VERBS)], WAYS[sum(divmod(number, len(VERBS))) % len(WAYS)]
        if way == "full disk" and not _may_mount(scratch):
            way = "file size"
        _try(world, scratch / f"kill-{number}", verb, way, tally=tallies[way], generator=generator)
    if tallies["full disk"].tried == 0:
        tallies["full disk"].name += " (mounting one is not allowed here; a limit was tried)"
    return list(tallies.values())


def fresh_kill_campaign(world: World, scratch: Path, num_trials: int, generator: random.Random) -> Tally:
    """Disturb a few verbs as users start them, as programs of their own: they must end as forked children do.

    Args:
        world ([`World`]): The small world.
        scratch (`Path`): For what the verbs make.
        num_trials (`int`): Disturbances by signals; verbs and signals take turns.
        generator (`random.Random`): Chooses moments.
    """
    tally = Tally("stopped by signals as programs of their own")
    durations: dict[str, float] = {}
    for number in range(num_trials):
        verb, way = _FRESH_VERBS[number % len(_FRESH_VERBS)], WAYS[number % 4]
        if verb not in durations:
            (whole := scratch / f"whole-{verb}").mkdir()
            durations[verb] = run(world.arguments(verb), whole, is_fresh=True).seconds
        folder = scratch / f"fresh-{number}"
        _try(world, folder, verb, way, tally=tally, generator=generator, seconds=durations[verb])
    return tally


def _try(
    world: World,
    folder: Path,
    verb: str,
    way: str,
    *,
    tally: Tally,
    generator: random.Random,
    seconds: float | None = None,
) -> None:
    """Disturb a verb once; with the `seconds` that it takes as a program of its own, in such a one."""
    folder.mkdir()
    is_fresh, seconds = seconds is not None, seconds or world.durations[verb]
    disturbance = _disturbance(way, seconds, generator)
    size = int(max(world.sizes[verb], 2**16) * generator.uniform(0.02, 1.1))
    with _disk(folder, size if way == "full disk" else None):
        first = run(world.arguments(verb), folder, disturbance, is_fresh=is_fresh)
        is_same_already = world.is_same(verb, folder)
        if way == "full disk":
            make_room(folder)
        second = run(world.arguments(verb), folder, is_fresh=is_fresh)
        is_same = world.is_same(verb, folder)
    if disturbance.signals and not is_fresh:  # how long it takes depends on what else the machine does
        took = first.seconds if first.code == 0 else max(second.seconds, seconds)
        world.durations[verb] = took
    verdict = "same"
    if first.code == 0 or not disturbance.signals:  # what no signal ends must say why it ends
        verdict = first.verdict(is_same_already)
    if "traceback" in (first.verdict(True), second.verdict(True)):
        verdict = "traceback"
    if verdict == "told" or (verdict == "same" and first.code != 0):
        verdict = second.verdict(is_same)
    how = f"{verb}, {way}, {disturbance}, {size if way == 'full disk' else 'any number of'} bytes"
    tally.count(verdict, f"{how}: {_ending(first)}\n--- again: {_ending(second)}")
    shutil.rmtree(folder)


def _ending(result: Result) -> str:
    return f"{result.code} after {result.seconds:.2f} s {result.output[-1500:]}"


def _disturbance(way: str, seconds: float, generator: random.Random) -> Disturbance:
    if way == "file size":
        return Disturbance(file_size=int(10 ** generator.uniform(1.5, 5.5)) % _LARGEST)
    if way == "full disk":
        return Disturbance()
    moment = generator.uniform(0, 1.1 * seconds)
    if way == "SIGINT twice":
        return Disturbance(((moment, signal.SIGINT), (moment + generator.uniform(0, 0.1) * seconds, signal.SIGINT)))
    return Disturbance(((moment, _SIGNALS.get(way, signal.SIGINT)),))


@contextlib.contextmanager
def _disk(folder: Path, size: int | None) -> Iterator[None]:
    if size is None:
        yield
        return
    with small_disk(folder, size):
        yield


def _may_mount(scratch: Path) -> bool:
    (folder := scratch / "mounted").mkdir(exist_ok=True)
    try:
        with small_disk(folder, 2**16):
            return True
    except OSError:
        return False
