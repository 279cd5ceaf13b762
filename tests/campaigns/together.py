"""Two of a kind at the same time on one folder: both end well, or one is told; what is made is what one would make."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from multiprocessing.connection import Connection
from pathlib import Path

from trials import Result, Tally, run
from world import World

VERBS = ("train", "predict", "embed", "sweep", "release", "cache")


def together_campaign(world: World, scratch: Path, num_trials: int, generator: random.Random) -> Tally:
    """Start a verb twice on one folder, the second a moment later.

    Args:
        world ([`World`]): The small world.
        scratch (`Path`): For what the verbs make.
        num_trials (`int`): Pairs.
        generator (`random.Random`): Chooses the moment.
    """
    tally = Tally("two at the same time")
    for number in range(num_trials):
        verb, folder = VERBS[number % len(VERBS)], scratch / f"together-{number}"
        folder.mkdir()
        delays = (0.0, generator.uniform(0, world.durations[verb]))
        results = _start_all(world, verb, folder, delays)
        verdicts = [result.verdict(True) for result in results]
        note = "\n--- and: ".join(f"{result.code} {result.output[-1500:]}" for result in results)
        verdict = next((each for each in ("traceback", "silent") if each in verdicts), None)
        if verdict is None:
            verdict = "same" if world.is_same(verb, folder) and "same" in verdicts else "silent"
        if verdict == "same" and "told" in verdicts:
            verdict = "told"
        tally.count(verdict, f"{verb} twice, {delays}: {note}")
        shutil.rmtree(folder)
    return tally


def _start_all(world: World, verb: str, folder: Path, delays: tuple[float, ...]) -> list[Result]:
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in delays]
    processes = [
        context.Process(target=_run, args=(world, verb, folder, delay, pipe[1]))
        for delay, pipe in zip(delays, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    results: list[Result] = [pipe[0].recv() for pipe in pipes]
    for process in processes:
        process.join()
    return results


def _run(world: World, verb: str, folder: Path, delay: float, connection: Connection) -> None:
    time.sleep(delay)
    connection.send(run(world.arguments(verb), folder))
