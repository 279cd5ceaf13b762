"""A compiled model through two stages: made anew, compared with the plain one, resumed, saved under its own names."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file
from tiny_families import FAMILIES
from transformers import TrainerCallback

from mmhf.training.compiled import CompiledStage
from mmhf.training.weights import weights_hash

COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


@pytest.fixture(autouse=True)
def _no_trace_of_compiling(monkeypatch):
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    torch.compiler.reset()


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fusion", "dual_encoder"])
def test_two_stages_compile_resume_and_save_the_same_names(name, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="mmhf")
    family = FAMILIES[name]

    def train(folder, *, stop=None, resume=None, **more):
        model = family.model()
        trainer = family.trainer(
            model, tmp_path / folder, save_strategy="steps", save_steps=2, use_cpu=True,
            callbacks=[] if stop is None else [Stop(stop)], **more,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return model

    plain, whole = train("plain"), train("whole", **COMPILED)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(whole.state_dict()[key], value, rtol=1e-3, atol=1e-5)
    told = [record.message for record in caplog.records if "compiled" in record.message]
    assert ["equal to the plain model" in line and line.startswith(f"Stage {name}") for line, name in zip(
        told, ("head", "all"), strict=True)] == [True, True]  # fmt: skip
    with pytest.raises(InterruptedError):
        train("stopped", stop=5, **COMPILED)
    resumed = train("stopped", resume=str(tmp_path / "stopped" / "checkpoint-4"), **COMPILED)
    assert weights_hash(resumed) == weights_hash(whole)
    saved = [load_file(tmp_path / folder / "checkpoint-6" / "model.safetensors") for folder in ("plain", "whole")]
    assert saved[0].keys() == saved[1].keys()
    assert not any("_orig_mod" in key for key in saved[1])


def test_another_result_than_the_plain_models_ends_the_run():
    model = torch.nn.Linear(2, 2)
    stage = CompiledStage("no", "head")
    stage.expect(model, lambda: torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="stage head: the compiled model differs from the plain one by 0.1"):
        stage.compare(torch.tensor(1.1))
    stage.expect(model, lambda: torch.tensor(1.0))
    stage.compare(torch.tensor(5.0))  # only the first pass is compared


def test_what_draws_random_numbers_is_not_compared(caplog):
    caplog.set_level(logging.INFO, logger="mmhf")
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    stage = CompiledStage("bf16", "head")
    stage.expect(torch.nn.Linear(2, 2), lambda: torch.rand(()))
    stage.compare(torch.tensor(100.0))
    assert "not compared with the plain model" in caplog.text
    assert torch.rand(()) == expected  # nobody else's random numbers are drawn
