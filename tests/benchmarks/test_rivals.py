"""`benchmarks/rivals`: what all contestants are given, how they are scored, and what is measured of them."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RIVALS = Path(__file__).parents[2] / "benchmarks" / "rivals"


@pytest.fixture
def contests(monkeypatch):
    monkeypatch.syspath_prepend(str(RIVALS))
    import contests

    return contests


def test_each_script_marks_what_a_user_writes_and_pins_what_it_needs(contests):
    for contest in contests.CONTESTS.values():
        assert 10 < contest.num_lines() < 60
        for rival in contest.rivals:
            assert 10 < rival.num_lines() < 150, rival.name
            compile(rival.imports(), rival.script, "exec")
            lines = (RIVALS / "requirements" / f"{rival.environment}.txt").read_text().splitlines()
            assert lines and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), rival.environment
            pinned = {line.partition("==")[0] for line in lines}
            assert set(rival.packages.split()) - {"timm"} <= pinned, rival.name


def test_rivals_get_the_rows_that_mmhf_trains_and_tests_on(contests, tmp_path):
    for split, count in (("train", 20), ("test", 3)):
        for label, shade in (("cat", 40), ("dog", 200)):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.full((16, 16, 3), shade + number, dtype=np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "data" / "test" / "dog" / "0.png").write_bytes(b"")
    contest = contests.CONTESTS["images"]
    job, overrides = contests.prepare(contest, tmp_path / "data", tmp_path / "work", tmp_path / "models", quick=True)
    with Path(job.rows).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    counts = {split: sum(row["split"] == split for row in rows) for split in ("train", "validation", "test")}
    assert counts == {"train": 36, "validation": 4, "test": 5}  # the empty file is nobody's
    assert job.epochs == 3 and "stages.2.epochs=1" in overrides
    assert {row["label"] for row in rows} == {"cat", "dog"} and all(Path(row["image"]).exists() for row in rows)

    (tmp_path / "run").mkdir()
    job = job._replace(output=str(tmp_path / "run"))
    job.answer("cat" for row in rows if row["split"] == "test")
    assert contests.score(contest, job) == pytest.approx({"accuracy": 0.6, "f1_macro": 0.375})


def test_a_process_is_measured_without_the_one_that_started_it(tmp_path):
    held = bytearray(300 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    work = "x = bytearray(60 * 2**20); x[::4096] = b'x' * len(x[::4096]); sum(range(3_000_000)); print('done')"
    command = [sys.executable, RIVALS / "measure.py", tmp_path / "costs.json", tmp_path / "log.txt", sys.executable]
    subprocess.run([*command, "-c", work], check=True)
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert 60 < costs["mebibytes"] < 200 and costs["seconds"] > 0
    assert (tmp_path / "log.txt").read_text() == "done\n"
    assert subprocess.run([*command, "-c", "raise SystemExit(3)"], check=False).returncode == 1
