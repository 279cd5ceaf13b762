"""Learning rates of one stage: for each group that trains, a curve over the stage's steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from mmhf.errors import InputError
from mmhf.models.partition import Partition
from mmhf.recipe.schema import StageSection
from mmhf.training.schedules import Shape, schedule_shape

Value = TypeVar("Value")


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
    """

    peak: float
    floor: float
    shape: Shape = field(repr=False)

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
        curves[group] = RateCurve(peak, min(floors[group], peak), shapes[warmups[group]])
    return curves


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
    alone (`fusion`, `head`) keeps its rate. Source: Clark et al., "ELECTRA", https://arxiv.org/abs/2003.10555.
    """
    towers: dict[str, list[str]] = {}
    for group in partition:
        towers.setdefault(group.split(".")[0], []).append(group)
    scales = dict.fromkeys(partition, 1.0)
    for tower, groups in towers.items():
        if decay is not None and groups != [tower]:
            scales.update({group: decay**depth for depth, group in enumerate(reversed(groups), start=1)})
    return scales
