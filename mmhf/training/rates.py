"""Learning rates of one stage: for each group that trains, a curve over the stage's steps.

Curves are pure functions of the step, so that resuming needs no state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from transformers import get_scheduler

from mmhf.errors import InputError
from mmhf.models.layer_groups import layer_of
from mmhf.models.partition import Partition
from mmhf.recipe.training_sections import StageSection

Value = TypeVar("Value")

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


@dataclass(frozen=True)
class RateDefaults:
    """What holds where a stage does not say: those of `training:` in a recipe."""

    learning_rate: float = 5e-5
    schedule: str = "constant"
    warmup: float | None = None


@dataclass(frozen=True)
class RateCurve:
    """The learning rate of one group over a stage.

    Attributes:
        peak (`float`): Highest learning rate.
        floor (`float`): Where the schedule ends; at most `peak`.
        shape (`Shape`): Step within the stage → factor between 0 and 1.
        beta1 (`Shape`, *optional*): Step within the stage → Adam's first beta, where it cycles with the rate.
    """

    peak: float
    floor: float
    shape: Shape = field(repr=False)
    beta1: Shape | None = field(default=None, repr=False)

    def at(self, step: int) -> float:
        """Learning rate at a step counted from the stage's start."""
        return self.floor + (self.peak - self.floor) * self.shape(step)


def rate_curves(
    stage: StageSection,
    partition: Partition,
    trained: Sequence[str],
    *,
    num_steps: int,
    steps_per_epoch: int | None,
    defaults: RateDefaults,
) -> dict[str, RateCurve]:
    """Resolve a stage's rates, warmups, floors and layer-wise decay for the groups that it trains.

    Raises:
        InputError: A value is given for groups that the stage does not train.
    """
    peaks = by_group(
        stage.learning_rate, stage, partition, trained, key="learning_rate", default=defaults.learning_rate
    )
    floors = by_group(stage.min_lr, stage, partition, trained, key="min_lr", default=0.0)
    warmups = by_group(stage.warmup, stage, partition, trained, key="warmup", default=defaults.warmup)
    scales = layer_scales(partition, stage.layer_decay)
    shapes = {
        warmup: schedule_shape(
            stage.schedule or defaults.schedule,
            num_steps,
            warmup=warmup,
            decay_rate=stage.decay_rate,
            steps_between_decays=round(stage.decay_every * (steps_per_epoch or num_steps)),
        )
        for warmup in set(warmups.values())
    }
    curves = {}
    for group in trained:
        peak = peaks[group] * scales[group]
        beta1 = _beta1_cycle(stage.cycle_beta1, num_steps, warmups[group])
        curves[group] = RateCurve(peak, min(floors[group], peak), shapes[warmups[group]], beta1)
    return curves


def _beta1_cycle(bounds: Sequence[float] | None, num_steps: int, warmup: float | None) -> Shape | None:
    if bounds is None:
        return None
    low, high = bounds
    share = one_cycle_shape(num_steps, _one_cycle_warmup(warmup, num_steps), start=0.0, end=0.0)
    return lambda step: high - (high - low) * share(step)


def _one_cycle_warmup(warmup: float | None, num_steps: int) -> float:
    share = 0.3 if warmup is None else warmup
    return share * num_steps if share < 1 else share


def by_group(
    given: Value | Mapping[str, Value] | None,
    stage: StageSection,
    partition: Partition,
    trained: Sequence[str],
    *,
    key: str,
    default: Value,
) -> dict[str, Value]:
    """Spread a setting over the groups that a stage trains: one value for all, or one by selector, later ones winning.

    Raises:
        InputError: A selector names no group that the stage trains.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(trained, default if given is None else given)
    values = dict.fromkeys(trained, default)
    for selector, value in given.items():
        named = [group for group in partition.select(selector) if group in values]
        if not named:
            raise InputError(f"stage {stage.name!r}: {key} is given for {selector!r}, which this stage does not train")
        values.update(dict.fromkeys(named, value))
    return values


def layer_scales(partition: Partition, decay: float | None) -> dict[str, float]:
    """Factor of each group's rate under layer-wise decay: `decay ** depth`, counted from the output.

    The last group of a prefix (`vision.final`, `text.layers.5`) is one deep, the one before it two; one that stands
    alone (`fusion`, `head`) keeps its rate, and a low-rank change is as deep as its layer. Source: Clark et al.,
    "ELECTRA", https://arxiv.org/abs/2003.10555.
    """
    towers: dict[str, list[str]] = {}
    for group in partition:
        if layer_of(group) == group:
            towers.setdefault(group.split(".")[0], []).append(group)
    scales = dict.fromkeys(partition, 1.0)
    for tower, groups in towers.items():
        if decay is not None and groups != [tower]:
            scales.update({group: decay**depth for depth, group in enumerate(reversed(groups), start=1)})
    return {group: scales[layer_of(group)] for group in partition}


def named_rates(rates: Mapping[str, float]) -> dict[str, float]:
    """Rates above 0 for display: by prefix where all groups of one share theirs, otherwise by group."""
    by_prefix: dict[str, set[float]] = {}
    for group, rate in rates.items():
        if rate > 0:
            by_prefix.setdefault(group.split(".")[0], set()).add(rate)
    named = {}
    for group, rate in rates.items():
        if rate > 0:
            prefix = group.split(".")[0]
            named[prefix if len(by_prefix[prefix]) == 1 else group] = rate
    return named


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def one_cycle_shape(
    num_steps: int, warmup_steps: float, *, start: float = _ONE_CYCLE_START, end: float = _ONE_CYCLE_END
) -> Shape:
    """The two-phase cosine of `torch.optim.lr_scheduler.OneCycleLR`, whose defaults it shares.

    Source: Smith and Topin, "Super-Convergence", https://arxiv.org/abs/1708.07120.
    """
    peak_at = max(warmup_steps - 1, 1e-9)
    end_at = max(num_steps - 1, peak_at + 1e-9)

    def shape(step: int) -> float:
        if step <= peak_at:
            return _cosine_between(start, 1.0, step / peak_at)
        return _cosine_between(1.0, end, min((step - peak_at) / (end_at - peak_at), 1.0))

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
    shape: Shape = scheduler.lr_lambdas[0]
    return shape


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
        return one_cycle_shape(num_steps, _one_cycle_warmup(warmup, num_steps))
    warmup_steps = warmup_in_steps(warmup or 0.0, num_steps)
    if name == "step":
        return step_shape(max(steps_between_decays, 1), decay_rate, warmup_steps)
    if name not in _TRANSFORMERS_NAMES:
        known = ", ".join([*_TRANSFORMERS_NAMES, "one_cycle", "step"])
        raise InputError(f"learning-rate schedule {name!r} is not a function of the step; choose one of {known}")
    return transformers_shape(_TRANSFORMERS_NAMES[name], num_steps, warmup_steps)
