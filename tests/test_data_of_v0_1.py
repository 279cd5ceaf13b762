"""Runs and releases that mmhf 0.1.0 made (`data_of_v0_1/make.py`): this version measures, asks and resumes them.

Numbers of one forward pass are 0.1.0's to `FORWARD`, those behind optimizer steps to `TRAINED`: kernels round by CPU
and by number of threads.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from clean_environment import make_clean_environment
from closeness import check_alike
from safetensors.torch import load_file
from torch.testing import assert_close

import mmhf
from mmhf.cli import main

DATA = Path(__file__).with_name("data_of_v0_1")
FAMILIES = ("fusion", "image_classifier", "captioner", "dual_encoder")
FORWARD = {"rel": 1e-4, "abs": 1e-5}
TRAINED = {"rel": 1e-3, "abs": 1e-4}

# Asks releases by transformers alone; run in an environment without mmhf.
SERVE = """
import json, sys
from transformers import pipeline
answers = []
for job in json.load(sys.stdin):
    served = pipeline(job["task"], model=job["release"], trust_remote_code=True)
    answers.append(served(*job["arguments"], **job["call"]))
json.dump({"answers": answers, "has_mmhf": "mmhf" in sys.modules}, sys.stdout)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data as the working directory, which the paths in its recipes start from."""
    copy = shutil.copytree(DATA, tmp_path / "data")
    monkeypatch.chdir(copy)
    return copy


def expected(family: str) -> dict[str, Any]:
    return json.loads((DATA / "expected" / f"{family}.json").read_text(encoding="utf-8"))


def check_numbers(given: Mapping[str, float], wanted: Mapping[str, float], tolerance: Mapping[str, float]) -> None:
    for name, value in wanted.items():
        assert given[name] == pytest.approx(value, **tolerance), name


def as_numbers(row: Mapping[str, str]) -> dict[str, Any]:
    numeric = ("probability_", "confidence")
    return {name: float(value) if name.startswith(numeric) else value for name, value in row.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_a_release_is_measured_as_before(folder: Path, family: str) -> None:
    release = f"released/{family}/v0.1"
    assert main(["evaluate", release, "--split", "validation", "--output", "measured"]) == 0
    check_numbers(
        json.loads((folder / "measured" / "metrics.json").read_text()), expected(family)["evaluated"], FORWARD
    )


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "dual_encoder"])
def test_a_release_predicts_as_before(folder: Path, family: str) -> None:
    release = f"released/{family}/v0.1"
    assert main(["predict", release, "--input", "rows.csv", "--output", "predicted.csv", "--limit", "6"]) == 0
    with (folder / "predicted.csv").open(newline="", encoding="utf-8") as stream:
        rows = [as_numbers(row) for row in csv.DictReader(stream)]
    check_alike(rows, [as_numbers(row) for row in expected(family)["predicted"]], **FORWARD)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("trust_remote_code", [None, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_release_is_served_as_before(family: str, trust_remote_code: bool | None) -> None:
    said = expected(family)["served"]
    served = mmhf.pipeline(said["task"], model=f"released/{family}/v0.1", trust_remote_code=trust_remote_code)
    check_alike(json.loads(json.dumps(served(*said["arguments"], **said["call"]))), said["answer"], **FORWARD)


@pytest.mark.slow
def test_releases_are_served_by_their_own_code_where_mmhf_is_not(folder: Path, tmp_path: Path) -> None:
    """As snapshots of the Hub: 0.1.0's captioner cannot be loaded from a folder by its own code alone."""
    said = [expected(family)["served"] for family in FAMILIES]
    jobs = [{**each, "release": f"org/{family}"} for family, each in zip(FAMILIES, said, strict=True)]
    commit = "0" * 40
    for family in FAMILIES:
        repo = tmp_path / "home" / "hub" / f"models--org--{family}"
        shutil.copytree(folder / "released" / family / "v0.1", repo / "snapshots" / commit)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(commit)
    python = make_clean_environment(tmp_path / "clean")
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [str(python), "-c", SERVE],
        input=json.dumps(jobs),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert not answers["has_mmhf"]
    check_alike(answers["answers"], [each["answer"] for each in said], **FORWARD)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stopped_run_goes_on_and_ends_as_before(folder: Path, family: str) -> None:
    """It stopped after step 4 of 6, in the second of two stages for the classifiers."""
    before = (folder / "released").rename(folder / "released_before")
    assert main(["train", f"{family}.yaml"]) == 0
    run, wanted = folder / "stopped" / family, expected(family)
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[:4] == wanted["losses"][:4], "the steps before are taken from the checkpoint"
    assert losses[4:] == pytest.approx(wanted["losses"][4:], **TRAINED)
    check_numbers(json.loads((run / "metrics.json").read_text()), wanted["metrics"], TRAINED)
    weights = load_file(run / "model.safetensors")
    for name, value in load_file(before / family / "v0.1" / "model.safetensors").items():
        assert_close(weights[name], value, rtol=TRAINED["rel"], atol=TRAINED["abs"], msg=name)
