"""Two processes train the same weights as one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def launch(recipe: Path, *overrides: str, num_processes: int) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(num_processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["--multi_gpu"] if num_processes > 1 else []
    done = subprocess.run(
        [*command, str(ROOT / "scripts" / "train.py"), str(recipe), *overrides],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_equal_one(tiny_recipe, text_encoder_dir, tmp_path):
    """Across a stage boundary, with the same global batch; dropout and augmentation off, no batch norm that trains."""
    encoder = shutil.copytree(text_encoder_dir, tmp_path / "encoder")
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(
        json.dumps({**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    )
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
    launch(recipe, f"training.output_dir={tmp_path / 'one'}", num_processes=1)
    launch(
        recipe,
        f"training.output_dir={tmp_path / 'two'}",
        "training.per_device_train_batch_size=4",
        num_processes=2,
    )
    start = load_file(encoder / "model.safetensors")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=1e-4, atol=1e-6), name
    moved = [name for name, value in start.items() if not torch.equal(one.get(f"text.{name}", value), value)]
    assert len(moved) > len(start) / 2
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-4)
