"""Run as a program: all campaigns in their long form; prints one table and what went wrong (`make campaigns`)."""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


import argparse  # isort: skip
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from damages import damage_campaign
from fuzz import fuzz_campaign
from growth import Growth, classes_campaign, rows_campaign, steps_campaign, table_of
from kills import fresh_kill_campaign, kill_campaign
from together import together_campaign
from trials import Tally, table
from world import World, quick_verbs


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the campaigns; stopped, they tell what was tried so far. The exit code is 1 if a trial went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=336)
    parser.add_argument("--fresh", type=int, default=20, help="kills of programs of their own")
    parser.add_argument("--damages", type=int, default=324)
    parser.add_argument("--fuzz", type=int, default=10_000)
    parser.add_argument("--together", type=int, default=30)
    parser.add_argument("--rows", type=int, default=100_000, help="that are predicted and evaluated")
    parser.add_argument("--steps", type=int, default=2_000, help="that are trained")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch, quick_verbs():
            _run(options, Path(scratch))
    except KeyboardInterrupt:
        say("stopped")
    tallies = [tally for tally in Tally.all if tally.tried]
    say(f"{time.monotonic() - started:.0f} s\n{table(tallies)}\n\n{table_of(Growth.all)}")
    return int(any(tally.notes for tally in tallies) or any(growth.is_too_large for growth in Growth.all))


def _run(options: argparse.Namespace, folder: Path) -> None:
    if options.fuzz:
        (folder / "fuzz").mkdir()
        fuzz_campaign(folder / "fuzz", options.fuzz, random.Random(options.seed))
    wanted = (options.kills, options.fresh, options.damages, options.together, options.rows, options.steps)
    if not any(wanted):
        return
    (folder / "world").mkdir()
    world = World(folder / "world")
    say("seconds: " + ", ".join(f"{verb} {each:.1f}" for verb, each in world.durations.items()))
    if options.steps:
        steps_campaign(world, folder, options.steps // 4, options.steps)
        steps_campaign(world, folder, max(5, options.steps // 80), max(20, options.steps // 20), workers=1)
    if options.rows:
        rows_campaign(world, folder, options.rows // 5, options.rows)
        classes_campaign(world, folder, 200, max(200, options.rows // 20), max(800, options.rows // 5))
    if options.damages:
        damage_campaign(world, folder, options.damages, random.Random(options.seed))
    if options.kills:
        kill_campaign(world, folder, options.kills, random.Random(options.seed))
    if options.fresh:
        fresh_kill_campaign(world, folder, options.fresh, random.Random(options.seed))
    if options.together:
        together_campaign(world, folder, options.together, random.Random(options.seed))


if __name__ == "__main__":
    sys.exit(main())
