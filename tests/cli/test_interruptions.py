"""Ctrl-C, full disks and kill -9: what is left is whole, and the same command goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mmhf.training.trainer import MMTrainer

AUGMENTED = {"augment": {"horizontal_flip": 0.5, "rotation": 10, "color_jitter": {"brightness": 0.2}}}


def fingerprint(run: Path) -> dict[str, Any]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return {
        "weights": hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
        "metrics": (run / "metrics.json").read_text(),
        "losses": [(entry["step"], entry[key]) for entry in history for key in ("loss", "eval_loss") if key in entry],
    }


def staged(two_stages: Mapping[str, Any], output_dir: Path, **training: Any) -> dict[str, Any]:
    """Two stages with dropout and augmentation, saved after each step."""
    saving = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2, **training}
    return {
        **two_stages,
        "data": AUGMENTED,
        "training": {"max_steps": None, "output_dir": str(output_dir), **saving},
    }


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    original = MMTrainer.training_step

    def training_step(self: MMTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MMTrainer, "training_step", training_step)


@pytest.mark.usefixtures("without_plots")
def test_interrupted_run_goes_on_as_if_it_never_stopped(tiny_recipe, two_stages, mmhf_cli, succeed, tmp_path):
    succeed("train", tiny_recipe(staged(two_stages, tmp_path / "whole")))
    recipe = tiny_recipe(staged(two_stages, tmp_path / "run", save_steps=2))
    for step in (1, 4, 5):  # before the first checkpoint, in the second stage, after an odd number of steps
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(step, patch, KeyboardInterrupt())
            outcome = mmhf_cli("train", recipe)
        assert outcome.code == 130
        assert outcome.err.splitlines()[-1] == "interrupted" and "Traceback" not in outcome.err
        assert not (tmp_path / "run" / "metrics.json").exists()
    succeed("train", recipe)
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("early_stopping", [None, {"metric": "loss", "patience": 1, "min_delta": 1.0}])
def test_run_stopped_while_it_was_evaluated_trains_no_further(
    early_stopping, tiny_recipe, two_stages, succeed, tmp_path
):
    recipe = tiny_recipe({**staged(two_stages, tmp_path / "run"), "early_stopping": early_stopping})
    succeed("train", recipe)
    whole = fingerprint(tmp_path / "run")
    assert whole["losses"][-1][0] == (6 if early_stopping is None else 4)
    (tmp_path / "run" / "metrics.json").unlink()
    succeed("train", recipe)
    assert fingerprint(tmp_path / "run") == whole


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_full_disk_leaves_no_half_checkpoint(name, tiny_recipe, two_stages, mmhf_cli, succeed, tmp_path, monkeypatch):
    """A limit on the size of files fails writes as a full disk does, in the middle of a file."""
    recipe = tiny_recipe(staged(two_stages, tmp_path / "run"))
    succeed("train", recipe, f"training.output_dir={tmp_path / 'whole'}")
    whole = tmp_path / "whole" / "checkpoint-6" / name
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size // 2, hard))
    try:
        outcome = mmhf_cli("train", recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 2
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert "checkpoint-" in line and "Traceback" not in outcome.err
    assert all((checkpoint / "complete").exists() for checkpoint in (tmp_path / "run").glob("checkpoint-*"))
    succeed("train", recipe)
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")


def start(recipe: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mmhf", "train", str(recipe)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def kill_when(process: subprocess.Popen, happens: Callable[[], bool], seconds: float = 120) -> None:
    """Kill -9 as soon as something is seen on disk, or leave the process if it ends before."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and not happens():
        assert time.monotonic() < deadline, "the run neither ended nor got there"
        time.sleep(0.0005)
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_killed_runs_end_as_if_never_killed(tiny_recipe, two_stages, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    process = start(tiny_recipe(staged(two_stages, whole), name="whole"))
    assert process.wait() == 0, process.communicate()

    generator = random.Random(0)
    recipe = tiny_recipe(staged(two_stages, run))
    moments: list[Callable[[], bool]] = [
        lambda: (run / "recipe.yaml").exists(),
        lambda: (run / "checkpoint-1").exists(),  # in the middle of writing it
        lambda: (run / "checkpoint-2" / "optimizer.pt").exists(),
        lambda: (run / "checkpoint-3" / "complete").exists(),
        lambda: (run / "checkpoint-4" / "complete").exists() and generator.random() < 0.02,  # evaluation follows
        lambda: (run / "checkpoint-6").exists(),
        lambda: (run / "model.safetensors").exists(),
        lambda: (run / "plots").exists(),
    ]
    for moment in moments:
        kill_when(start(recipe), moment)
        assert not (run / "metrics.json").exists(), "killed too late to prove anything"
    process = start(recipe)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "Going on from" in errors
    assert fingerprint(run) == fingerprint(whole)


@pytest.mark.slow
def test_ctrl_c_with_workers_is_one_line(tiny_recipe, tmp_path):
    """A terminal sends the signal to the data loader's workers too."""
    recipe = tiny_recipe({"training": {"max_steps": 5000, "dataloader_num_workers": 2, "eval_strategy": "no"}})
    process = start(recipe)
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if "step 2 of" in line:
            os.killpg(process.pid, signal.SIGINT)
            break
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in rest and rest.splitlines()[-1] == "interrupted", rest
