"""Two processes train the same weights as one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from programs import run_together
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def launch_two(recipe: Path, *overrides: str) -> None:
    """`accelerate launch`, as a user types it."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*command, str(ROOT / "scripts" / "train.py"), str(recipe), *overrides],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr


HALVES = ["training.per_device_train_batch_size=4"]
"""Of the batch of 8, for each of two processes."""


def check_same_weights(one: Path, two: Path) -> dict[str, torch.Tensor]:
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, value in weights.items():
        assert torch.allclose(others[name], value, rtol=1e-4, atol=1e-6), name
    return weights


def check_same_metrics(one: Path, two: Path) -> None:
    metrics, others = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
    assert others == pytest.approx(metrics, abs=1e-4)


@pytest.fixture
def encoder(text_encoder_dir, tmp_path):
    """A text encoder without dropout."""
    folder = shutil.copytree(text_encoder_dir, tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    )
    return folder


@pytest.mark.slow
def test_two_processes_equal_one(tiny_recipe, encoder, succeed, tmp_path):
    """Across a stage boundary, with the same global batch; dropout and augmentation off, no batch norm that trains."""
    stages = [
        {"name": "head", "steps": 3, "train": ["fusion", "head"]},
        {"name": "text", "steps": 4, "train": ["text", "fusion", "head"], "learning_rate": {"text": 1e-3}},
    ]
    changes = {
        "model": {"fusion": {"dropout": 0.0}, "text": {"backbone": str(encoder)}},
        "training": {"max_steps": None, "optim": "sgd", "save_strategy": "steps", "save_steps": 2},
        "stages": stages,
    }
    recipe = tiny_recipe(changes)
    succeed("train", recipe, f"training.output_dir={tmp_path / 'one'}")
    launch_two(recipe, f"training.output_dir={tmp_path / 'two'}", *HALVES)
    start = load_file(encoder / "model.safetensors")
    check_same_metrics(tmp_path / "one", tmp_path / "two")
    one = check_same_weights(tmp_path / "one", tmp_path / "two")
    moved = [name for name, value in start.items() if not torch.equal(one.get(f"text.{name}", value), value)]
    assert len(moved) > len(start) / 2


IMAGE_STAGES = [
    {"name": "head", "steps": 3, "train": "head", "schedule": "cosine"},
    {"name": "top", "steps": 3, "train": ["head", "vision:last 30%"], "batch_norm": "frozen"},
    {"name": "all", "steps": 3, "learning_rate": {"vision": 0.2}, "batch_norm": "frozen"},
]


@pytest.mark.slow
def test_two_processes_equal_one_over_three_stages_of_an_image_classifier(tiny_recipe, succeed, tmp_path):
    """Batch norm keeps its statistics: in training mode it would normalise each process's half batch by itself. Beside
    the labels it is taught by a run of its own kind, whose answers two processes ask for together."""
    changes = {
        "task": "image-classification",
        "model": {"text": None, "embedding_dim": None, "fusion": None, "head": {"hidden_dim": 8, "dropout": [0, 0]}},
        "data": {"source": "sample", "path": None, "max_length": None, "limit": 24},
        "training": {
            "max_steps": None,
            "save_strategy": "steps",
            "save_steps": 3,
            "save_total_limit": 3,
            "learning_rate": 0.5,
        },
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "stages": IMAGE_STAGES,
    }
    recipe = tiny_recipe(changes)
    succeed("train", recipe, f"training.output_dir={tmp_path / 'teacher'}", "stages=[{name: all, steps: 2}]")
    taught = [f"teacher={tmp_path / 'teacher'}", "training.output_dir={}", "cache={{mode: auto, folder: {} features}}"]
    one, two = ([word.format(tmp_path / name) for word in taught] for name in ("one", "two"))
    succeed("train", recipe, *one)
    run_together("train", recipe, *two, *HALVES, num_processes=2)
    check_same_metrics(tmp_path / "one", tmp_path / "two")
    ends = [
        check_same_weights(tmp_path / "one" / checkpoint, tmp_path / "two" / checkpoint)
        for checkpoint in ("checkpoint-3", "checkpoint-6", "checkpoint-9")
    ]
    trained = [
        {name for name in later if not torch.equal(later[name], earlier[name])} for earlier, later in pairwise(ends)
    ]
    assert {name for name in ends[0] if name.startswith("head.")} < trained[0] < trained[1]
    assert trained[1] == {name for name in ends[0] if "running_" not in name and "num_batches" not in name}


def forget_what_follows(run: Path, step: int) -> None:
    """Leave a run folder as it was when the run was killed after the checkpoint of a step."""
    (run / "metrics.json").unlink()
    for checkpoint in run.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)


@pytest.mark.slow
def test_a_run_moved_to_two_processes_and_back_ends_as_if_it_had_stayed(tiny_recipe, encoder, succeed, tmp_path):
    """Both moves are in the middle of an epoch, of 4 steps; the schedule falls all the while."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    changes = {
        "model": {"fusion": {"dropout": 0.0}, "text": {"backbone": str(encoder)}},
        "training": {
            "max_steps": None,
            "optim": "sgd",
            "save_strategy": "steps",
            "save_steps": 3,
            "save_total_limit": 9,
        },
        "stages": [
            {"name": "head", "epochs": 1, "train": ["fusion", "head"]},
            {"name": "text", "epochs": 2.5, "train": ["text", "fusion", "head"], "schedule": "cosine"},
        ],
    }
    recipe = tiny_recipe(changes)
    succeed("train", recipe, f"training.output_dir={whole}")
    shutil.copytree(whole, moved)
    forget_what_follows(moved, 6)
    run_together("train", recipe, f"training.output_dir={moved}", *HALVES, "--allow-changes", num_processes=2)
    forget_what_follows(moved, 9)
    succeed("train", recipe, f"training.output_dir={moved}", "--allow-changes")
    check_same_metrics(whole, moved)
    check_same_weights(whole, moved)
    states = [json.loads((run / "trainer_state.json").read_text()) for run in (whole, moved)]
    assert [(state["global_step"], state["epoch"]) for state in states] == [(14, 3.5), (14, 3.5)]
    history = json.loads((moved / "changes.json").read_text())["history"]
    told = [(entry["step"], [line for line in entry["changes"] if "processes" in line]) for entry in history]
    assert told == [(6, ["processes: 1 → 2"]), (9, ["processes: 2 → 1"])]
