"""Every verb is stopped at random moments, in every way; the same command then ends as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

from trials import Disturbance, Result, Tally, World, run

VERBS = ("train", "cache", "evaluate", "predict", "embed", "sweep", "release")
_WAYS = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT twice": (signal.SIGINT, signal.SIGINT),
    "file size": (),
}
_LARGEST = 300_000
"""Bytes of the largest files that the verbs write here."""


def kill_campaign(world: World, scratch: Path, num_trials: int, generator: random.Random) -> list[Tally]:
    """Disturb verbs and run them again.

    Args:
        world ([`World`]): The small world.
        scratch (`Path`): For what the verbs make.
        num_trials (`int`): Disturbances; verbs and ways take turns.
        generator (`random.Random`): Chooses moments.
    """
    tallies = {way: Tally(f"stopped by {way}" if way != "file size" else "files cut by a limit") for way in _WAYS}
    for number in range(num_trials):
        verb, way = VERBS[number % len(VERBS)], list(_WAYS)[number // len(VERBS) % len(_WAYS)]
        folder = scratch / f"kill-{number}"
        folder.mkdir()
        disturbance = _disturbance(world, verb, way, generator)
        first = run(world.arguments(verb), folder, disturbance)
        second = run(world.arguments(verb), folder)
        verdict = _verdict(world, verb, folder, first, second)
        tallies[way].count(
            verdict,
            f"{verb}, {disturbance}: {first.code} {first.output[-1500:]}\n--- again: {second.code} "
            f"{second.output[-1500:]}",
        )
        if verdict in ("same", "told"):
            shutil.rmtree(folder)
    return list(tallies.values())


def _disturbance(world: World, verb: str, way: str, generator: random.Random) -> Disturbance:
    if way == "file size":
        return Disturbance(file_size=int(10 ** generator.uniform(1.5, 5.5)) % _LARGEST)
    return Disturbance(_WAYS[way], delay=generator.uniform(0, 1.1 * world.durations[verb]))


def _verdict(world: World, verb: str, folder: Path, first: Result, second: Result) -> str:
    if first.verdict(True) == "traceback":
        return "traceback"
    if first.code == 0:  # it had ended before it was stopped, or nothing was as large as the limit
        if not world.is_same(verb, folder):
            return "silent"
        return "told" if second.verdict(True) != "traceback" else "traceback"
    return second.verdict(world.is_same(verb, folder))
