"""The first pass of a compiled stage is compared with the plain model."""

from __future__ import annotations

import logging

import pytest
import torch

from mmhf.training.compiled import CompiledStage


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
    model, stage = torch.nn.Linear(2, 2), CompiledStage("bf16", "head")
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    stage.expect(model, lambda: torch.rand(()))
    stage.compare(torch.tensor(100.0))
    assert "not compared with the plain model" in caplog.text
    assert torch.rand(()) == expected  # nobody else's random numbers are drawn
