"""Weighted sampling and modality dropout: what they draw follows from seed, epoch and row alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import run_together
from safetensors.torch import load_file

from mmhf.training.trainer import MMTrainer

DRAWN = {
    "model": {"modalities": {"stand_in": "learnt", "dropout": {"image": 0.3, "text": 0.3}}},
    "loss": {"auxiliary_weight": 0.5, "focal_gamma": 1.0, "class_weights": "balanced", "logit_adjustment": 1.0},
    "sampling": {"power": 0.5},
    "data": {"augment": {"horizontal_flip": 0.5, "rotation": 10}},
}


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MMTrainer.training_step

    def training_step(self: MMTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MMTrainer, "training_step", training_step)


def check_close(one: Path, two: Path) -> None:
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, value in weights.items():
        assert torch.allclose(others[name], value, rtol=1e-4, atol=1e-6), name


def steps(output_dir: Path, **training: Any) -> dict[str, Any]:
    """Nine steps of a batch of 8: more than two epochs, saved as asked for."""
    return {"training": {"max_steps": 9, "output_dir": str(output_dir), "save_strategy": "steps", **training}}


@pytest.mark.slow
def test_an_interrupted_run_draws_what_it_would_have_drawn(tiny_recipe, mmhf_cli, succeed, tmp_path):
    succeed("train", tiny_recipe({**DRAWN, **steps(tmp_path / "whole", save_steps=2)}, name="whole"))
    recipe = tiny_recipe({**DRAWN, **steps(tmp_path / "run", save_steps=2)})
    for step in (3, 6):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(step, patch)
            assert mmhf_cli("train", recipe).code == 130
    succeed("train", recipe)
    for name in ("model.safetensors", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_accumulated_batches_equal_whole_ones(tiny_recipe, succeed, tmp_path):
    """With class weights, dropped modalities and auxiliary losses, which are not alike in any two micro-batches."""
    exact = {"model": {**DRAWN["model"], "fusion": {"dropout": 0.0}, "freeze_vision": True, "freeze_text": True}}
    changes = {**DRAWN, **exact, "optimizer": {"name": "sgd"}}
    for name, size, accumulated in (("whole", 8, 1), ("cut", 2, 4)):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        per_device = {"per_device_eval_batch_size": 8, **cut}
        succeed("train", tiny_recipe({**changes, **steps(tmp_path / name, **per_device)}, name=name))
    check_close(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_draw_what_one_does(tiny_recipe, succeed, text_encoder_dir, tmp_path):
    encoder = shutil.copytree(text_encoder_dir, tmp_path / "encoder")
    config = json.loads((encoder / "config.json").read_text())
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (encoder / "config.json").write_text(json.dumps({**config, **dropout}))
    model = {**DRAWN["model"], "fusion": {"dropout": 0.0}, "text": {"backbone": str(encoder)}, "freeze_vision": True}
    recipe = tiny_recipe({**DRAWN, "model": model, "optimizer": {"name": "sgd"}, **steps(tmp_path / "one")})
    succeed("train", recipe)
    changes = [f"training.output_dir={tmp_path / 'two'}", "training.per_device_train_batch_size=4"]
    run_together("train", recipe, *changes, num_processes=2)
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-4)
    check_close(tmp_path / "one", tmp_path / "two")
