"""Staged training as one run: what trains when, at which rate, as a function of the global step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from mmhf.errors import InputError
from mmhf.models.partition import Partition
from mmhf.recipe.schema import StageSection
from mmhf.training.schedules import Shape, schedule_shape

Stage = StageSection
"""What a user says about one stage; see `mmhf.recipe.schema.StageSection` for its fields."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage with everything resolved.

    Attributes:
        name (`str`): Its name.
        num_steps (`int`): Optimizer steps.
        peak_rates (`Mapping[str, float]`): Group that trains → its highest learning rate.
        min_lr (`float`): Where the schedule ends.
        shape (`Shape`): Step within the stage → factor between 0 and 1.
        schedule (`str`): Name of the schedule.
    """

    name: str
    num_steps: int
    peak_rates: Mapping[str, float]
    min_lr: float
    shape: Shape = field(repr=False)
    schedule: str = "constant"

    def learning_rate(self, group: str, step: int) -> float:
        """Learning rate of a group at a step counted from the stage's start; 0 for a group that is frozen."""
        peak = self.peak_rates.get(group)
        if peak is None:
            return 0.0
        floor = min(self.min_lr, peak)
        return floor + (peak - floor) * self.shape(step)


@dataclass(frozen=True)
class StagePosition:
    """Where a global step lies: the stage's index, the global step at which it began, and the steps done in it."""

    index: int
    started_at: int
    step: int


class StagePlan:
    """The stages of a run on one step axis.

    The plan is a function of the global step and of `early_ends`, the stages that were cut short. These travel with
    the learning-rate scheduler's state, so that a resumed run knows all that it needs.

    Args:
        partition (`Partition`): The model's parameter groups.
        stages (`Sequence[PlannedStage]`): In order.

    Example:
        ```python
        plan = StagePlan.build(model, [Stage(name="head", epochs=2, train="head"), Stage(name="all", epochs=3)],
                               steps_per_epoch=100, learning_rate=1e-4)
        optimizer = plan.create_optimizer(torch.optim.AdamW, weight_decay=0.01)
        Trainer(model, TrainingArguments(max_steps=plan.num_steps),
                optimizers=(optimizer, plan.create_scheduler(optimizer)), callbacks=[StageCallback(plan)], ...)
        ```
    """

    def __init__(self, model: PreTrainedModel, partition: Partition, stages: Sequence[PlannedStage]) -> None:
        self.model = model
        self.partition = partition
        self.stages = tuple(stages)
        self.early_ends: dict[int, int] = {}

    @classmethod
    def build(
        cls,
        model: PreTrainedModel,
        stages: Sequence[Stage],
        *,
        steps_per_epoch: int | None,
        learning_rate: float = 5e-5,
        schedule: str = "constant",
        warmup: float | None = None,
    ) -> StagePlan:
        """Resolve stages against a model.

        Args:
            model (`PreTrainedModel`): Any model; the families of mmhf name their own groups, others are cut by layers.
            stages (`Sequence[Stage]`): What the user asked for.
            steps_per_epoch (`int`, *optional*): Optimizer steps of an epoch; needed for stages counted in epochs.
            learning_rate, schedule, warmup: What holds where a stage does not say.

        Raises:
            InputError: A selector matches nothing, a stage trains nothing, or epochs are asked of a stream.
        """
        partition = Partition.of(model)
        planned = [_plan_stage(stage, partition, steps_per_epoch, learning_rate, schedule, warmup) for stage in stages]
        return cls(model, partition, planned)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run, as planned."""
        return sum(stage.num_steps for stage in self.stages)

    def locate(self, global_step: int) -> StagePosition | None:
        """Find the stage that the step *after* `global_step` finished steps belongs to; None past the end."""
        started_at = 0
        for index, stage in enumerate(self.stages):
            ends_at = self.early_ends.get(index, started_at + stage.num_steps)
            if global_step < ends_at:
                return StagePosition(index, started_at, global_step - started_at)
            started_at = ends_at
        return None

    def end_stage(self, global_step: int) -> None:
        """Cut the current stage short: what follows `global_step` belongs to the next one."""
        position = self.locate(global_step)
        if position is not None:
            self.early_ends[position.index] = global_step

    def learning_rates(self, global_step: int) -> dict[str, float]:
        """Group → learning rate of the step after `global_step` finished ones."""
        position = self.locate(global_step)
        if position is None:
            return dict.fromkeys(self.partition, 0.0)
        stage = self.stages[position.index]
        return {group: stage.learning_rate(group, position.step) for group in self.partition}

    def summary(self) -> list[dict[str, object]]:
        """One row a stage for reports: name, steps, schedule, what trains, and the highest rates."""
        rows = []
        started_at = 0
        for index, stage in enumerate(self.stages):
            ends_at = self.early_ends.get(index, started_at + stage.num_steps)
            rates = sorted(set(stage.peak_rates.values()), reverse=True)
            rows.append(
                {
                    "stage": stage.name,
                    "steps": ends_at - started_at,
                    "ended early": "yes" if index in self.early_ends else "",
                    "trains": ", ".join(stage.peak_rates),
                    "learning rate": ", ".join(f"{rate:g}" for rate in rates),
                    "schedule": stage.schedule,
                }
            )
            started_at = ends_at
        return rows

    def parameter_groups(self, *, weight_decay: float = 0.0) -> list[dict]:
        """Parameter groups for an optimizer that sees every parameter from the start, frozen or not.

        Each group of the partition gives one or two of them, under its name: what decays and what does not (biases and
        the weights of normalisation layers).
        """
        parameters = dict(self.model.named_parameters())
        undecayed = _undecayed_parameters(self.model)
        rates = self.learning_rates(0)
        groups = []
        for group, names in self.partition.items():
            for decay, is_decayed in ((weight_decay, True), (0.0, False)):
                members = [parameters[name] for name in names if (name not in undecayed) == is_decayed]
                if members:
                    groups.append({"params": members, "name": group, "weight_decay": decay, "lr": rates[group]})
        return groups

    def create_optimizer(
        self,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        *,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> torch.optim.Optimizer:
        """Build an optimizer over `parameter_groups`; `kwargs` go to its class."""
        kwargs.setdefault("lr", max(self.stages[0].peak_rates.values()))
        return optimizer_class(self.parameter_groups(weight_decay=weight_decay), **kwargs)

    def create_scheduler(self, optimizer: torch.optim.Optimizer) -> StageScheduler:
        """Build the scheduler that gives each parameter group the rate of its group."""
        return StageScheduler(optimizer, self)


class StageScheduler(LRScheduler):
    """Sets each parameter group's learning rate from a `StagePlan`; `last_epoch` counts optimizer steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, plan: StagePlan) -> None:
        self.plan = plan
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        rates = self.plan.learning_rates(self.last_epoch)
        return [rates[group["name"]] for group in self.optimizer.param_groups]

    def refresh(self) -> None:
        """Set the rates anew, after the plan was changed at this step."""
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict:
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "_last_lr": self._last_lr,
            "early_ends": dict(self.plan.early_ends),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        self.plan.early_ends = dict(state_dict["early_ends"])
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        self.refresh()


def _undecayed_parameters(model: PreTrainedModel) -> set[str]:
    """Names of biases and of the parameters of normalisation layers; both are vectors or scalars in every library."""
    return {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}


def _plan_stage(
    stage: Stage,
    partition: Partition,
    steps_per_epoch: int | None,
    learning_rate: float,
    schedule: str,
    warmup: float | None,
) -> PlannedStage:
    num_steps = _count_steps(stage, steps_per_epoch)
    trained = partition.select(stage.train)
    name = stage.schedule or schedule
    shape = schedule_shape(
        name,
        num_steps,
        warmup=warmup if stage.warmup is None else stage.warmup,
        decay_rate=stage.decay_rate,
        steps_between_decays=round(stage.decay_every * (steps_per_epoch or num_steps)),
    )
    return PlannedStage(
        name=stage.name,
        num_steps=num_steps,
        peak_rates=_peak_rates(stage, partition, trained, learning_rate),
        min_lr=stage.min_lr,
        shape=shape,
        schedule=name,
    )


def _count_steps(stage: Stage, steps_per_epoch: int | None) -> int:
    if stage.steps is not None:
        return stage.steps
    if steps_per_epoch is None:
        raise InputError(f"stage {stage.name!r} counts epochs, but the data's length is unknown; give it `steps`")
    assert stage.epochs is not None
    return max(math.ceil(stage.epochs * steps_per_epoch), 1)


def _peak_rates(stage: Stage, partition: Partition, trained: Sequence[str], default: float) -> dict[str, float]:
    if stage.learning_rate is None:
        return dict.fromkeys(trained, default)
    if not isinstance(stage.learning_rate, dict):
        return dict.fromkeys(trained, stage.learning_rate)
    rates = dict.fromkeys(trained, default)
    for selector, rate in stage.learning_rate.items():
        named = partition.select(selector)
        unmoved = [group for group in named if group not in rates]
        if len(unmoved) == len(named):
            raise InputError(
                f"stage {stage.name!r}: a learning rate is given for {selector!r}, which this stage does not train"
            )
        rates.update({group: rate for group in named if group in rates})
    return rates
