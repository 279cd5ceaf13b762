"""A compiled model through two stages: made anew, compared with the plain one, resumed, saved under its own names."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import TrainerCallback

from mmhf.training.compiled import CompiledStage

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
