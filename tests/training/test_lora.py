"""Stages that train low-rank changes: the weights below stand still, and a stopped run ends as if it had not been."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES
from transformers import PreTrainedModel, TrainerCallback

from mmhf.models.adapting import lora_values
from mmhf.models.layer_groups import is_lora
from mmhf.models.partition import Partition
from mmhf.recipe.sections import LoraSection
from mmhf.training.checkpoints import last_complete_checkpoint
from mmhf.training.stages import Stage


class Stop(TrainerCallback):
    """Interrupts a run before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def adapted_model(name: str, *, dora: bool = False) -> PreTrainedModel:
    model: Any = FAMILIES[name].model(dropout=0.1)
    model.add_lora(lora_values(model, LoraSection(rank=2, dropout=0.2, dora=dora), list(model.encoders())))
    return model


def stages(name: str) -> list[Stage]:
    head, parts = list(FAMILIES[name].head), list(adapted_model(name).encoders())
    rates = {**{f"{part}.lora": 1e-2 for part in parts}, **dict.fromkeys(head, 1e-3)}
    return [
        Stage(name="head", steps=2, train=head),
        Stage(name="lora", steps=4, train=list(rates), learning_rate=rates),
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_below_do_not_move_by_one_bit(name: str, tmp_path: Path) -> None:
    model = adapted_model(name, dora=True)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trainer = FAMILIES[name].trainer(model, tmp_path, stages=stages(name), weight_decay=0.1)
    trainer.train()
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    head = tuple(key for group in FAMILIES[name].head for key in Partition.of(model)[group])
    assert moved and all(is_lora(key) or key in head for key in moved)
    assert {key for key in before if is_lora(key)} <= moved
    assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image_classifier", "captioner"])
def test_a_run_that_is_stopped_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    def train(folder: Path, *stops: int) -> PreTrainedModel:
        for stop in [*stops, -1]:
            model = adapted_model(name)
            trainer = FAMILIES[name].trainer(
                model, folder, stages=stages(name), callbacks=[Stop(stop)], save_strategy="steps", save_steps=1
            )
            checkpoint = last_complete_checkpoint(folder)
            with contextlib.suppress(KeyboardInterrupt):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return model

    whole, stopped = train(tmp_path / "whole"), train(tmp_path / "stopped", 1, 4)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, stopped.state_dict()[key]), key
