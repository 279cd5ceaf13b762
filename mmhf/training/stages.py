"""Staged training as one run: what trains when, at which rate, as a function of the global step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from mmhf.errors import InputError
from mmhf.models.layer_groups import layer_of
from mmhf.models.partition import Partition
from mmhf.models.quantization import quantized_layers
from mmhf.recipe.training_sections import StageSection
from mmhf.training.optimizers import (
    MixedOptimizer,
    OptimizerChoice,
    StageScheduler,
    configure_groups,
    optimizer_choice,
)
from mmhf.training.planned_stage import PlannedStage, plan_stage
from mmhf.training.rates import RateDefaults

_DORA_MAGNITUDE = "lora_magnitude_vector"
Stage = StageSection
"""What a user says about one stage; see `mmhf.recipe.training_sections.StageSection` for its fields."""


@dataclass(frozen=True)
class StagePosition:
    """Where a run is.

    Attributes:
        index (`int`): Of the stage.
        stage (`PlannedStage`): The stage.
        started_at (`int`): Global step at which it began.
        step (`int`): Steps of its schedule that are done.
        is_start (`bool`): Whether it has just begun.
    """

    index: int
    stage: PlannedStage
    started_at: int
    step: int
    is_start: bool


class StagePlan:
    """The stages of a run on one step axis.

    The plan is a function of the global step and of `early_ends`, the stages that were cut short. These travel with
    the learning-rate scheduler's state, so that a resumed run knows all that it needs.

    Args:
        model (`PreTrainedModel`): The model.
        partition (`Partition`): Its parameter groups.
        stages (`Sequence[PlannedStage]`): In order.

    Example:
        ```python
        stages = [Stage(name="head", epochs=2.0, train="head"), Stage(name="all", epochs=3.0)]
        plan = StagePlan.build(model, stages, steps_per_epoch=100, learning_rate=1e-4)
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
        self._skipped: dict[int, int] = {}
        self._is_placed = False
        self._default_choice = OptimizerChoice(torch.optim.AdamW)

    @classmethod
    def build(
        cls,
        model: PreTrainedModel,
        stages: Sequence[Stage],
        *,
        steps_per_epoch: int | Callable[[Stage], int] | None,
        learning_rate: float = 5e-5,
        schedule: str = "constant",
        warmup: float | None = None,
    ) -> StagePlan:
        """Resolve stages against a model.

        Args:
            model (`PreTrainedModel`): Any; the families of mmhf name their own groups, others are cut by layers.
            stages (`Sequence[Stage]`): What the user asked for.
            steps_per_epoch (`int` or `Callable`, *optional*): Optimizer steps of an epoch, or a function that tells
                them of a stage, where stages have batches of their own size. Needed for stages counted in epochs.
            learning_rate, schedule, warmup: What holds where a stage does not say.

        Raises:
            InputError: A selector matches nothing, a stage trains nothing, or weights of few bits, or epochs are asked
                of a stream.
        """
        partition = Partition.of(model)
        defaults = RateDefaults(learning_rate, schedule, warmup)
        has_own_batches = any(stage.has_own_batches for stage in stages)
        few_bits = {part: layers[0].bits for part, layers in quantized_layers(model).items()}
        planned = []
        for stage in stages:
            steps = steps_per_epoch(stage) if callable(steps_per_epoch) else steps_per_epoch
            planned.append(plan_stage(stage, partition, steps, defaults, whole_epochs=has_own_batches))
            _refuse_few_bits(planned[-1], few_bits)
        return cls(model, partition, planned)

    def without(self, prefixes: Sequence[str]) -> StagePlan:
        """This plan, with the groups below some prefixes frozen in every stage, since nothing can be learnt there.

        Raises:
            InputError: A stage trains nothing else.
        """
        unused = {group for prefix in prefixes for group in self.partition.select(prefix)}
        stages = []
        for stage in self.stages:
            curves = {group: curve for group, curve in stage.curves.items() if group not in unused}
            if not curves:
                raise InputError(
                    f"stage {stage.name!r} trains only {', '.join(stage.curves)}, which the model does not use"
                )
            optimizers = {group: choice for group, choice in stage.optimizers.items() if group not in unused}
            stages.append(replace(stage, curves=curves, optimizers=optimizers))
        return StagePlan(self.model, self.partition, stages)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run, as planned."""
        return sum(stage.num_steps for stage in self.stages)

    @property
    def last_step(self) -> int:
        """Optimizer steps of the whole run, less those of stages that were cut short."""
        return self.spans()[-1][1]

    def locate(self, global_step: int) -> StagePosition | None:
        """Find the stage that the step *after* `global_step` finished steps belongs to; None past the end."""
        for index, (started_at, ends_at) in enumerate(self.spans()):
            if global_step < ends_at:
                return self._position(index, started_at, global_step)
        return None

    def _position(self, index: int, started_at: int, global_step: int) -> StagePosition:
        step = global_step - started_at + self._skipped.get(index, 0)
        return StagePosition(index, self.stages[index], started_at, step, is_start=global_step == started_at)

    def place(self, global_step: int, starts: Sequence[int], steps_left: int, early_ends: Mapping[int, int]) -> bool:
        """Go on where another plan of the same stages was, whose steps had other numbers of samples.

        Steps that are done stay as many as they were; the stage under way has its schedule's last `steps_left` steps
        before it, and later stages are whole.

        Args:
            global_step (`int`): Steps that are done.
            starts (`Sequence[int]`): Global step at which each stage began, up to the one under way.
            steps_left (`int`): Steps of that stage.
            early_ends (`Mapping[int, int]`): Stages that were cut short, and where.

        Returns:
            `bool`: whether the plan is another than before.
        """
        current = len(starts) - 1
        self.early_ends = dict(early_ends)
        if self.early_ends.get(current, global_step) > global_step:
            self.early_ends[current] = global_step + steps_left
        lengths = [end - start for start, end in zip(starts, starts[1:], strict=False)]
        lengths.append(global_step - starts[-1] + steps_left)
        skipped = {index: self.stages[index].num_steps - length for index, length in enumerate(lengths)}
        self._skipped = {index: number for index, number in skipped.items() if number and index not in self.early_ends}
        self._is_placed = True
        return bool(self._skipped)

    def restore(self, early_ends: Mapping[int, int]) -> None:
        """Take over what a checkpoint's scheduler says, unless the plan was placed."""
        if not self._is_placed:
            self.early_ends = dict(early_ends)

    def end(self) -> StagePosition:
        """The last stage, when all its steps are done."""
        started_at, ends_at = self.spans()[-1]
        return self._position(len(self.stages) - 1, started_at, ends_at)

    def is_over(self, global_step: int) -> bool:
        """Whether no step follows `global_step` finished ones."""
        return global_step >= self.last_step

    def spans(self) -> list[tuple[int, int]]:
        """Global step at which each stage begins, and the one at which it has ended."""
        spans = []
        started_at = 0
        for index, stage in enumerate(self.stages):
            ends_at = self.early_ends.get(index, started_at + stage.num_steps - self._skipped.get(index, 0))
            spans.append((started_at, ends_at))
            started_at = ends_at
        return spans

    def end_stage(self, global_step: int) -> None:
        """Cut the current stage short: what follows `global_step` belongs to the next one.

        Where stages have batches of their own, the stage ends with the epoch that it is in.
        """
        position = self.locate(global_step)
        if position is None:
            return
        steps = position.stage.steps_per_epoch
        if self.has_own_batches and steps is not None:
            global_step = position.started_at + math.ceil(position.step / steps) * steps
        self.early_ends[position.index] = global_step

    @property
    def has_own_batches(self) -> bool:
        """Whether some stage has another batch size or augmentation, so that all begin and end with an epoch."""
        return any(stage.section.has_own_batches for stage in self.stages)

    @property
    def num_epochs(self) -> int:
        """Passes over the data, as planned, where each stage begins with an epoch."""
        return sum(math.ceil(stage.num_steps / (stage.steps_per_epoch or stage.num_steps)) for stage in self.stages)

    def epoch_of(self, global_step: int) -> tuple[int, int]:
        """Whole epochs before a global step, and steps into its epoch, where each stage begins with an epoch."""
        epochs = 0
        for stage, (started_at, ends_at) in zip(self.stages, self.spans(), strict=True):
            steps = stage.steps_per_epoch or stage.num_steps
            if global_step < ends_at:
                return epochs + (global_step - started_at) // steps, (global_step - started_at) % steps
            epochs += math.ceil((ends_at - started_at) / steps)
        return epochs, 0

    def end_run(self, global_step: int) -> None:
        """Cut the current stage and all that were to follow short: nothing follows `global_step`."""
        while self.locate(global_step) is not None:
            self.end_stage(global_step)

    def learning_rates(self, global_step: int) -> dict[str, float]:
        """Group → learning rate of the step after `global_step` finished ones."""
        position = self.locate(global_step)
        if position is None:
            return dict.fromkeys(self.partition, 0.0)
        return {group: position.stage.learning_rate(group, position.step) for group in self.partition}

    def cycled_beta1(self, global_step: int) -> dict[str, float]:
        """Group → Adam's first beta of the step after `global_step` finished ones, where it cycles with the rate."""
        position = self.locate(global_step)
        curves = {} if position is None else position.stage.curves
        step = 0 if position is None else position.step
        return {group: curve.beta1(step) for group, curve in curves.items() if curve.beta1 is not None}

    def summary(self) -> list[dict[str, object]]:
        """One row a stage for reports: name, steps, schedule, what trains, and the highest rates."""
        rows: list[dict[str, object]] = []
        for index, (stage, (started_at, ends_at)) in enumerate(zip(self.stages, self.spans(), strict=True)):
            groups: dict[float, list[str]] = {}
            for group, rate in stage.peak_rates.items():
                groups.setdefault(rate, []).append(group)
            rates = [f"{rate:g} for {folded_groups(groups[rate])}" for rate in sorted(groups, reverse=True)]
            rows.append(
                {
                    "stage": stage.name,
                    "steps": ends_at - started_at,
                    "ended early": "yes" if index in self.early_ends else "",
                    "trains": folded_groups(list(stage.curves))
                    + (", from a linear probe" if stage.section.start == "linear_probe" else ""),
                    "learning rate": "; ".join(rates),
                    "schedule": stage.schedule,
                }
            )
        return rows

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer that sees every parameter from the start, frozen or not; but no integers,
        which never train.

        Each group of the partition gives one or two of them, under its name: what decays and what does not (biases and
        the weights of normalisation layers).
        """
        parameters = dict(self.model.named_parameters())
        rates = self.learning_rates(0)
        groups: list[dict[str, Any]] = []
        for group, names in self.partition.items():
            for decays in (True, False):
                # Biases and the parameters of normalisation layers are vectors or scalars in every library. So are
                # DoRA's magnitudes, which peft keeps in the shape of a convolution's output.
                members = [
                    parameters[name]
                    for name in names
                    if (parameters[name].ndim > 1 and _DORA_MAGNITUDE not in name) == decays
                    and parameters[name].is_floating_point()
                ]
                if members:
                    groups.append({"params": members, "name": group, "decays": decays, "lr": rates[group]})
        return groups

    def create_optimizer(
        self,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        *,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> torch.optim.Optimizer:
        """Build the optimizer of the whole run.

        Args:
            optimizer_class (`type[torch.optim.Optimizer]`): For all groups and stages that do not choose their own.
            weight_decay (`float`): Likewise.
            options: Keyword arguments of `optimizer_class`.
        """
        options.pop("lr", None)
        self._default_choice = OptimizerChoice(optimizer_class, options, weight_decay)
        users: dict[Any, set[str]] = {optimizer_class: set(self.partition)}
        for index, stage in enumerate(self.stages):
            for group in stage.curves:
                users.setdefault(self.optimizer_choices(index)[group].optimizer_class, set()).add(group)
        groups = self.parameter_groups()
        members = [
            kind(
                [{**group, "kind": kind.__name__} for group in groups if group["name"] in names],
                lr=0.0,
                **(options if kind is optimizer_class else {}),
            )
            for kind, names in users.items()
        ]
        optimizer = members[0] if len(members) == 1 else MixedOptimizer(members)
        configure_groups(optimizer.param_groups, dict.fromkeys(self.partition, self._default_choice))
        configure_groups(optimizer.param_groups, self.optimizer_choices(0))
        return optimizer

    def optimizer_choices(self, index: int) -> dict[str, OptimizerChoice]:
        """Group that a stage trains → the optimizer that steps it there."""
        stage = self.stages[index]
        default = self._default_choice
        return {
            group: optimizer_choice(stage.optimizers[group], weight_decay=default.weight_decay)
            if group in stage.optimizers
            else default
            for group in stage.curves
        }

    def create_scheduler(self, optimizer: torch.optim.Optimizer) -> StageScheduler:
        """Build the scheduler that gives each parameter group the rate of its group."""
        return StageScheduler(optimizer, self)


def folded_groups(groups: Sequence[str]) -> str:
    """Names of groups, those of one part as a range: `vision.stages.4 … 6, fusion, head`."""
    parts: dict[str, list[str]] = {}
    for group in groups:
        parts.setdefault(group.split(".")[0], []).append(group)
    return ", ".join(
        f"{names[0]} … {names[-1].split('.', 1)[1]}" if len(names) > 2 else ", ".join(names)
        for names in parts.values()
    )


def _refuse_few_bits(stage: PlannedStage, few_bits: Mapping[str, int]) -> None:
    """Refuse to train an encoder whose weights have few bits, `few_bits` by its name; its low-rank changes may."""
    for group in stage.curves:
        part = group.partition(".")[0]
        if part in few_bits and layer_of(group) == group:
            problem = f"trains {group}, but the weights of {part} have {few_bits[part]} bits for good"
            way_out = f"leave {part} out of its `train`, or remove `model.{part}.quantization`"
            raise InputError(f"stage {stage.name!r}: {problem}; {way_out}")
