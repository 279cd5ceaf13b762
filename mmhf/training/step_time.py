"""How long the steps of each stage take on a device, from a few that are made."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mmhf.training.stages import StagePlan
from mmhf.training.weights import apply_freezing

_STEPS = 3


@dataclass(frozen=True)
class StepTime:
    """One stage.

    Attributes:
        step (`float`): Seconds of an optimizer step, the optimizer itself not counted.
        total (`float`): Seconds of the stage.
    """

    step: float
    total: float


def measure_stages(plan: StagePlan, inputs: Mapping[str, torch.Tensor], *, accumulation: int) -> list[StepTime]:
    """Make a few forward and backward passes of each stage.

    Args:
        plan (`StagePlan`): Its model is on the device; what its weights are does not matter, and they are not changed.
        inputs (`Mapping[str, torch.Tensor]`): One micro-batch of the largest shape, with labels.
        accumulation (`int`): Micro-batches of one optimizer step.
    """
    model, measured = plan.model, []
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(0.0, 0.02).abs_()
            else:
                tensor.zero_()
    for stage in plan.stages:
        apply_freezing(model, plan.partition, stage.curves, hold_batch_norm=stage.section.batch_norm == "frozen")
        model.train()
        seconds = []
        for _ in range(_STEPS + 1):
            begun = time.perf_counter()
            loss = model(**inputs).loss
            if loss.requires_grad:
                loss.backward()
            if loss.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
            model.zero_grad(set_to_none=True)
        step = statistics.median(seconds[1:]) * accumulation
        measured.append(StepTime(step, step * stage.num_steps))
    return measured
