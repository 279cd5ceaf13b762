"""One stage of a plan, resolved against a model: how long it is, what it trains, and at which rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmhf.errors import InputError
from mmhf.models.partition import Partition
from mmhf.recipe.training_sections import OptimizerSection, StageSection
from mmhf.training.rates import RateCurve, RateDefaults, by_group, rate_curves


@dataclass(frozen=True)
class PlannedStage:
    """One stage with everything resolved.

    Attributes:
        section (`StageSection`): What the user said.
        num_steps (`int`): Optimizer steps.
        steps_per_epoch (`int`, *optional*): Of them in one pass over the data; None for a stream.
        curves (`Mapping[str, RateCurve]`): Group that trains → its learning rate over the stage.
        schedule (`str`): Name of the schedule.
        optimizers (`Mapping[str, OptimizerSection]`): Group → optimizer, where the stage has its own.
    """

    section: StageSection
    num_steps: int
    steps_per_epoch: int | None
    curves: Mapping[str, RateCurve]
    schedule: str = "constant"
    optimizers: Mapping[str, OptimizerSection] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.section.name

    @property
    def peak_rates(self) -> dict[str, float]:
        """Group that trains → its highest learning rate."""
        return {group: curve.peak for group, curve in self.curves.items()}

    def learning_rate(self, group: str, step: int) -> float:
        """Learning rate of a group at a step counted from the stage's start; 0 for a group that is frozen."""
        return self.curves[group].at(step) if group in self.curves else 0.0


def plan_stage(
    stage: StageSection,
    partition: Partition,
    steps_per_epoch: int | None,
    defaults: RateDefaults,
    *,
    whole_epochs: bool,
) -> PlannedStage:
    """Resolve a stage against a model's groups.

    Args:
        stage (`StageSection`): What the user said.
        partition (`Partition`): The groups.
        steps_per_epoch (`int`, *optional*): Optimizer steps of an epoch; needed for a stage counted in epochs.
        defaults (`RateDefaults`): What holds where the stage does not say.
        whole_epochs (`bool`): Whether it must end with an epoch, because some stage has batches of its own.

    Raises:
        InputError: A selector matches nothing, the stage trains nothing, or it cannot have that length.
    """
    num_steps = _count_steps(stage, steps_per_epoch)
    if whole_epochs and (steps_per_epoch is None or num_steps % steps_per_epoch):
        raise InputError(
            f"stage {stage.name!r} ends within an epoch ({num_steps} steps, {steps_per_epoch or 'unknown'} an epoch); "
            "where a stage has its own batch_size or augment, all stages need whole epochs"
        )
    trained = partition.select(stage.train)
    curves = rate_curves(
        stage, partition, trained, num_steps=num_steps, steps_per_epoch=steps_per_epoch, defaults=defaults
    )
    optimizers = by_group(stage.optimizer, stage, partition, trained, key="optimizer", default=None)
    return PlannedStage(
        section=stage,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        curves=curves,
        schedule=stage.schedule or defaults.schedule,
        optimizers={group: section for group, section in optimizers.items() if section is not None},
    )


def _count_steps(stage: StageSection, steps_per_epoch: int | None) -> int:
    if stage.steps is not None:
        return stage.steps
    if steps_per_epoch is None:
        raise InputError(f"stage {stage.name!r} counts epochs, but the data's length is unknown; give it `steps`")
    assert stage.epochs is not None
    return max(math.ceil(stage.epochs * steps_per_epoch), 1)
