"""The campaigns in their short form; `make campaigns` runs the long one (docs/reliability.md)."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from damages import PLACES
from fuzz import fuzz_campaign
from trials import table
from world import VERBS


@pytest.mark.slow
def test_fuzzed_inputs_are_read_or_refused(tmp_path: Path):
    tallies = fuzz_campaign(tmp_path, 500, random.Random(1))
    assert sum(tally.tried for tally in tallies) == 500
    notes = [note for tally in tallies for note in tally.notes]
    assert not notes, f"{table(tallies)}\n" + "\n".join(notes)


@pytest.mark.slow
def test_what_is_stopped_damaged_or_grows_is_told_or_changes_nothing(tmp_path: Path):
    """A program of its own, because children are forked from it: one that has had threads may not do that."""
    counts = {
        "kills": len(VERBS), "fresh": 0, "damages": len(PLACES), "together": 3, "fuzz": 0, "rows": 2_000, "steps": 100
    }  # fmt: skip
    arguments = [str(word) for name, count in counts.items() for word in (f"--{name}", count)]
    command = [sys.executable, str(Path(__file__).with_name("run.py")), *arguments, "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = [int(line.split("|")[2]) for line in done.stdout.splitlines() if line.endswith("| 0 | 0 |")]
    assert sum(tried) == sum(counts[name] for name in ("kills", "damages", "together")), done.stdout
