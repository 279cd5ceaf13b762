"""Shapes of the learning rate over a stage: pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from transformers import get_scheduler

from mmhf.errors import InputError

Shape = Callable[[int], float]
"""Step within a stage, from 0 → factor between 0 and 1 that the peak learning rate is multiplied with."""

_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = _ONE_CYCLE_START / 1e4

# transformers' names for the shapes that it provides; "constant" must honour a warmup.
_TRANSFORMERS_NAMES = {
    "constant": "constant_with_warmup",
    "constant_with_warmup": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "polynomial": "polynomial",
    "cosine_with_restarts": "cosine_with_restarts",
    "inverse_sqrt": "inverse_sqrt",
}


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def one_cycle_shape(num_steps: int, warmup_steps: float) -> Shape:
    """The two-phase cosine of `torch.optim.lr_scheduler.OneCycleLR`, whose defaults it shares.

    Source: Smith and Topin, "Super-Convergence", https://arxiv.org/abs/1708.07120.
    """
    peak_at = max(warmup_steps - 1, 1e-9)
    end_at = max(num_steps - 1, peak_at + 1e-9)

    def shape(step: int) -> float:
        if step <= peak_at:
            return _cosine_between(_ONE_CYCLE_START, 1.0, step / peak_at)
        return _cosine_between(1.0, _ONE_CYCLE_END, min((step - peak_at) / (end_at - peak_at), 1.0))

    return shape


def step_shape(steps_between_decays: int, decay_rate: float, warmup_steps: int) -> Shape:
    """Multiply by `decay_rate` every `steps_between_decays` steps, after a linear warmup."""

    def shape(step: int) -> float:
        warmup = min((step + 1) / (warmup_steps + 1), 1.0)
        return warmup * decay_rate ** (step // steps_between_decays)

    return shape


def transformers_shape(name: str, num_steps: int, warmup_steps: int) -> Shape:
    """A schedule of `transformers.get_scheduler` as a function of the step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    specific = {"lr_end": 0.0} if name == "polynomial" else {}
    scheduler = get_scheduler(name, optimizer, warmup_steps, num_steps, scheduler_specific_kwargs=specific)
    return scheduler.lr_lambdas[0]


def warmup_in_steps(warmup: float, num_steps: int) -> int:
    """Resolve a warmup given as a share of the stage (below 1) or as a number of steps."""
    return math.ceil(warmup * num_steps) if warmup < 1 else int(warmup)


def schedule_shape(
    name: str, num_steps: int, *, warmup: float | None, decay_rate: float, steps_between_decays: int
) -> Shape:
    """Build the shape of the learning rate over one stage.

    Args:
        name (`str`): A `ScheduleName` of the recipe, or a name of `transformers.SchedulerType` that can be staged.
        num_steps (`int`): Optimizer steps of the stage.
        warmup (`float`, *optional*): Steps, or a share of the stage below 1. `one_cycle` takes 0.3 when absent, as
            torch does, the others none.
        decay_rate (`float`), steps_between_decays (`int`): Of the schedule `step`.

    Raises:
        InputError: The name is not one that can be staged.
    """
    if name == "one_cycle":
        share = 0.3 if warmup is None else warmup
        return one_cycle_shape(num_steps, share * num_steps if share < 1 else share)
    warmup_steps = warmup_in_steps(warmup or 0.0, num_steps)
    if name == "step":
        return step_shape(max(steps_between_decays, 1), decay_rate, warmup_steps)
    if name not in _TRANSFORMERS_NAMES:
        known = ", ".join([*_TRANSFORMERS_NAMES, "one_cycle", "step"])
        raise InputError(f"learning-rate schedule {name!r} is not a function of the step; choose one of {known}")
    return transformers_shape(_TRANSFORMERS_NAMES[name], num_steps, warmup_steps)
