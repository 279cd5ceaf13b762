"""Ctrl-C, full disks and kill -9: what is left is whole, and the same command goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from programs import Program

import mmhf.cli
from mmhf.__main__ import main
from mmhf.training.trainer import MMTrainer

AUGMENTED = {"horizontal_flip": 0.5, "rotation": 10, "color_jitter": {"brightness": 0.2}}
_SPEED = ("runtime", "per_second", "flos")


def fingerprint(run: Path) -> dict[str, Any]:
    """Hash of the weights, metrics, and all that was logged on the way but speed and the sums of the last start."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return {
        "weights": hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
        "metrics": (run / "metrics.json").read_text(),
        "history": [
            {key: value for key, value in entry.items() if not key.endswith(_SPEED)}
            for entry in history
            if "train_runtime" not in entry
        ],
    }


def staged(two_stages: Mapping[str, Any], output_dir: Path, **training: Any) -> dict[str, Any]:
    """Two stages with dropout and augmentation, saved after each step."""
    saving = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2, **training}
    return {
        **two_stages,
        "data": {"augment": AUGMENTED},
        "training": {"max_steps": None, "output_dir": str(output_dir), **saving},
    }


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    original = MMTrainer.training_step

    def training_step(self: MMTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MMTrainer, "training_step", training_step)


@pytest.mark.slow
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
    (tmp_path / "run").rename(tmp_path / "moved")  # a run does not know where it lies
    succeed("train", recipe, f"training.output_dir={tmp_path / 'moved'}")
    assert fingerprint(tmp_path / "moved") == fingerprint(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("early_stopping", [None, {"metric": "loss", "patience": 1, "min_delta": 1.0}])
def test_run_stopped_while_it_was_evaluated_trains_no_further(
    early_stopping, tiny_recipe, two_stages, succeed, tmp_path
):
    recipe = tiny_recipe({**staged(two_stages, tmp_path / "run"), "early_stopping": early_stopping})
    succeed("train", recipe)
    whole = fingerprint(tmp_path / "run")
    assert whole["history"][-1]["step"] == (6 if early_stopping is None else 4)
    (tmp_path / "run" / "metrics.json").unlink()
    succeed("train", recipe)
    assert fingerprint(tmp_path / "run") == whole


@pytest.mark.slow
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


@pytest.mark.slow
def test_ctrl_c_with_workers_is_one_line(tiny_recipe, tmp_path):
    """A terminal sends the signal to the data loader's workers too."""
    recipe = tiny_recipe({"training": {"max_steps": 5000, "dataloader_num_workers": 2, "eval_strategy": "no"}})
    program = Program("train", recipe)
    program.wait_until(lambda: "step 2 of" in program.output)
    before = len(program.output)
    program.send(signal.SIGINT)
    assert program.wait() == 130
    rest = program.output[before:]
    assert "Traceback" not in rest and rest.splitlines()[-1] == "interrupted", rest


def test_a_second_ctrl_c_while_the_first_is_answered_is_no_traceback(monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(mmhf.cli, "main", interrupted)
    try:
        assert main(["train"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "a third one ends what is left to do"
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("is_interrupted", "code"), [(True, 130), (False, None)])
def test_a_ctrl_c_that_a_library_turns_into_an_error_is_one_line(is_interrupted, code, monkeypatch, capsys):
    def broken(arguments):
        try:
            if is_interrupted:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        raise ValueError("KeyboardInterrupt: ")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(mmhf.cli, "main", broken)
    try:
        with contextlib.nullcontext() if is_interrupted else pytest.raises(ValueError, match="KeyboardInterrupt"):
            assert main(["train"]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ("interrupted\n" if is_interrupted else "")


class Trainings:
    """A process of `killable_training.py`; each training is a forked process of its own."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killable_training.py"))],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, recipe: Path, kill_at: Callable[[str, int], float | None] = lambda moment, step: None) -> int:
        """Train until the end, or until killed; gives the exit code.

        `kill_at` is asked at each moment, such as ("save", 3), and answers after how many seconds to kill, or None.
        """
        assert self._server.stdin is not None
        self._server.stdin.write(f"{recipe}\n")
        self._server.stdin.flush()
        _, pid = self._next()
        delay = kill_at("start", 0)
        while delay is None:
            moment, number = self._next()
            if moment == "end":
                return number
            delay = kill_at(moment, number)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):  # it came to its end just now
            os.kill(pid, signal.SIGKILL)
        while True:
            moment, number = self._next()
            if moment == "end":
                return number

    def _next(self) -> tuple[str, int]:
        assert self._server.stdout is not None
        moment, number = self._server.stdout.readline().split()
        return moment, int(number)

    def close(self) -> None:
        self._server.communicate("")


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    trainings = Trainings()
    yield trainings
    trainings.close()


class RandomKill:
    """Kills at one of the first three moments of a kind, or when the run is about to finish, up to 20 ms later.

    `at` is then the moment at which it did, and the number of optimizer steps.
    """

    def __init__(self, moment: str, generator: random.Random) -> None:
        self.at = ("", -1)
        self._moment = moment
        self._left = 1 if moment == "start" else generator.randint(1, 3)
        self._delay = generator.uniform(0.0, 0.5 if moment == "start" else 0.02)

    def __call__(self, moment: str, step: int) -> float | None:
        self._left -= moment == self._moment
        if self._left and moment != "finish":
            return None
        self.at = (moment, step)
        return self._delay


EVERYTHING: dict[str, Any] = {
    "task": "image-classification",
    "model": {"text": None, "embedding_dim": None, "fusion": None, "head": {"hidden_dim": 8, "dropout": [0.3, 0.15]}},
    "data": {
        "source": "sample",
        "path": None,
        "max_length": None,
        "limit": 16,
        "augment": {**AUGMENTED, "mixup": 0.2},
    },
    "training": {
        "max_steps": None,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "metric_for_best_model": "f1_macro",
        "save_total_limit": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
    },
    "ema": {"decay": 0.9},
    "stages": [
        {"name": "head", "steps": 2, "train": "head", "schedule": "one_cycle", "carry_best": "f1_macro"},
        {"name": "top", "epochs": 1, "train": ["head", "vision:last 2"], "batch_size": 2, "augment": {}},
        {
            "name": "all",
            "epochs": 2,
            "learning_rate": {"vision": 1e-3},
            "layer_decay": 0.8,
            "label_smoothing": 0.1,
            "optimizer": {"vision": {"name": "sgd", "momentum": 0.9}, "head": {"name": "adamw"}},
            "unfreeze_on_plateau": {"metric": "loss", "patience": 2},
        },
    ],
}
"""Stages with batches of their own, accumulated gradients, dropout, mixup, averaged weights, two optimizers, the best
weights carried over and loaded at the end, one checkpoint kept."""


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_if_never_killed(trainings, tiny_recipe, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"

    def recipe(folder: Path) -> Path:
        training = {**EVERYTHING["training"], "output_dir": str(folder)}
        return tiny_recipe({**EVERYTHING, "training": training}, name=folder.name)

    assert trainings.run(recipe(whole)) == 0, whole.with_suffix(".log").read_text()
    wanted = fingerprint(whole)
    stage_of = {entry["step"]: entry["stage"] for entry in wanted["history"]}

    generator, killed = random.Random(0), []
    while not (run / f"checkpoint-{max(stage_of)}" / "complete").exists():
        kill = RandomKill(generator.choice(["start", "step", "step", "evaluate", "save"]), generator)
        assert trainings.run(recipe(run), kill) == -signal.SIGKILL, run.with_suffix(".log").read_text()
        killed.append(kill.at)
    for moment in ("evaluate", "finish"):
        assert trainings.run(recipe(run), RandomKill(moment, generator)) == -signal.SIGKILL
    seen: set[str] = set()
    assert trainings.run(recipe(run), lambda moment, step: seen.add(moment)) == 0
    assert "step" not in seen, "what had been trained was trained again"
    assert fingerprint(run) == wanted

    assert len(killed) >= 6
    assert {moment for moment, _ in killed} >= {"start", "step", "evaluate", "save"}
    assert {stage_of[step] for _, step in killed if step > 0} == set(stage_of.values())
