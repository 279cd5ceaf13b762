"""What a recipe would do: groups, rates, steps and memory of each stage, from a model without weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import TrainingArguments

from mmhf.errors import InputError
from mmhf.features.choice import PartMeasure
from mmhf.features.parts import FeaturePart, HasFeatureParts
from mmhf.training.memory import (
    GIB,
    MemoryEstimate,
    device_memory,
    estimate_memory,
    fits_at_once,
    saved_activations,
    usable_memory,
)
from mmhf.training.stages import PlannedStage, StagePlan
from mmhf.training.weights import apply_freezing


@dataclass(frozen=True)
class GroupRow:
    """One parameter group in one stage: its parameters, and its highest learning rate (None = frozen)."""

    name: str
    num_parameters: int
    learning_rate: float | None


@dataclass(frozen=True)
class StageReport:
    """One stage as `mmhf plan` shows it."""

    name: str
    start: str | None
    """What its head starts from: `linear_probe`, or the weights as they are."""
    length: str
    schedule: str
    groups: tuple[GroupRow, ...]
    counted: dict[str, tuple[str, ...]]
    """What selectors with a number in them, such as `vision:last 2`, came out as."""
    batch_norm: str
    memory: MemoryEstimate


def describe_stages(
    plan: StagePlan,
    example_inputs: Mapping[str, torch.Tensor],
    *,
    state_values_per_parameter: int,
    measure: Callable[[FeaturePart], PartMeasure | None],
    precision: str = "no",
    length_known: bool = True,
) -> list[StageReport]:
    """Describe each stage of a plan over a model on the meta device, where nothing is computed or stored.

    Args:
        plan (`StagePlan`): Of any model.
        example_inputs (`Mapping[str, torch.Tensor]`): One micro-batch of the largest shape, with labels.
        state_values_per_parameter (`int`): What the optimizer keeps.
        measure (`Callable`): Measures a part of the model; asked for encoders that a stage freezes.
        precision (`str`, defaults to `"no"`): What is computed under autocast: `bf16`, `fp16`, or nothing.
        length_known (`bool`, defaults to `True`): Whether the plan's steps mean anything.
    """
    counts = plan.partition.counts(plan.model)
    reports = []
    for stage in plan.stages:
        apply_freezing(plan.model, plan.partition, stage.curves, hold_batch_norm=stage.section.batch_norm == "frozen")
        reports.append(
            StageReport(
                name=stage.name,
                start=stage.section.start,
                length=f"{stage.num_steps} steps" if length_known else "steps unknown",
                schedule=stage.schedule,
                groups=tuple(GroupRow(name, counts[name], stage.peak_rates.get(name)) for name in plan.partition),
                counted=plan.partition.counted(stage.section.train),
                batch_norm=_batch_norm_mode(plan.model),
                memory=estimate_memory(
                    plan,
                    stage,
                    _past_frozen_encoders(plan, stage, example_inputs, measure),
                    state_values=state_values_per_parameter,
                    precision=precision,
                ),
            )
        )
    return reports


def describe_largest_batch(stages: Sequence[StageReport], args: TrainingArguments) -> str:
    """How many samples pass through the model at once where that takes most memory."""
    stage = max(stages, key=lambda each: each.memory.total_gib)
    fits = fits_at_once(stage.memory, args.per_device_train_batch_size, args.device)
    there = usable_memory(args.device)
    if fits is None or there is None:
        return f"unknown: how much memory the {args.device.type} device has is not known"
    return f"about {fits:,} samples in stage {stage.name}, by the {there / GIB:.1f} GiB that the device can spare"


def memory_problems(stages: Sequence[StageReport], args: TrainingArguments) -> list[str]:
    """Which stages need more memory than the device has, each with a way out."""
    device, there = args.device, device_memory(args.device)
    problems = []
    for stage in stages:
        if there is not None and stage.memory.total_gib > there / GIB:
            fits = fits_at_once(stage.memory, args.per_device_train_batch_size, device) or 1
            problems.append(
                f"stage {stage.name} needs about {stage.memory.total_gib:.1f} GiB, the {device.type} has "
                f"{there / GIB:.1f}; lower training.per_device_train_batch_size to {fits} (and raise "
                "training.gradient_accumulation_steps), or set training.gradient_checkpointing=true"
            )
    return problems


def _past_frozen_encoders(
    plan: StagePlan,
    stage: PlannedStage,
    example_inputs: Mapping[str, torch.Tensor],
    measure: Callable[[FeaturePart], PartMeasure | None],
) -> dict[str, torch.Tensor]:
    """A batch with the features of frozen encoders in place of what these read.

    They keep nothing for a backward pass, or at most the tokens of which a pooled one is a view, and to run their
    shapes takes most of a plan's time.
    """
    inputs, model = dict(example_inputs), plan.model
    if not isinstance(model, HasFeatureParts):
        return inputs
    for part in model.feature_parts():
        if not stage.curves.keys().isdisjoint(model.part_groups(part)) or not inputs.keys() & part.inputs:
            continue
        if (measured := measure(part)) is not None:
            read = [inputs.pop(name) for name in part.inputs if name in inputs]
            inputs[part.feature] = torch.empty(len(read[0]), *measured.shape, dtype=measured.dtype, device="meta")
    return inputs


def _batch_norm_mode(model: nn.Module) -> str:
    model.train()
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return "none in the model"
    training = sum(layer.training for layer in layers)
    return f"{training} of {len(layers)} layers update their statistics"


ONE_ROW = "Expected more than 1 value per channel"
"""How torch says that batch norm cannot normalise one value by itself."""


def check_batches_of_one(plan: StagePlan, example_inputs: Mapping[str, torch.Tensor], stages: Collection[str]) -> None:
    """Refuse a plan over a model on the meta device, some stage of which cannot train on a single row.

    Args:
        plan (`StagePlan`): As `describe_stages` takes it.
        example_inputs (`Mapping[str, torch.Tensor]`): A micro-batch of one row, with labels.
        stages (`Collection[str]`): Names of those that have such a batch.

    Raises:
        InputError: Batch norm would have one value to normalise.
    """
    for stage in plan.stages:
        if stage.name not in stages:
            continue
        apply_freezing(plan.model, plan.partition, stage.curves, hold_batch_norm=stage.section.batch_norm == "frozen")
        try:
            saved_activations(plan.model, example_inputs)
        except ValueError as error:
            if ONE_ROW not in str(error):
                raise
            raise InputError(one_row_refusal(stage.name)) from error


def one_row_refusal(stage: str) -> str:
    """Why a stage cannot train on a batch of one row, and the ways out."""
    return (
        f"stage {stage}: batch norm cannot train on one row, which is all that is left for a batch; choose another "
        "training.per_device_train_batch_size or data.limit, set training.dataloader_drop_last: true to leave the row "
        "out, or batch_norm: frozen in the stage"
    )
