"""What a recipe would do: groups, rates, steps and memory of each stage, from a model without weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from mmhf.errors import InputError
from mmhf.training.stages import PlannedStage, StagePlan
from mmhf.training.weights import apply_freezing

_GIB = 2**30


@dataclass(frozen=True)
class GroupRow:
    """One parameter group in one stage: its parameters, and its highest learning rate (None = frozen)."""

    name: str
    num_parameters: int
    learning_rate: float | None


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training one stage takes on each device, without what the framework itself needs.

    Attributes:
        weights (`int`): Parameters and buffers.
        gradients (`int`): Of what trains.
        optimizer (`int`): State of what trains: two values a parameter for Adam, one for SGD with momentum.
        activations (`int`): What the backward pass keeps of one micro-batch of the largest shape.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total_gib(self) -> float:
        """All of it, in GiB."""
        return (self.weights + self.gradients + self.optimizer + self.activations) / _GIB


@dataclass(frozen=True)
class StageReport:
    """One stage as `mmhf plan` shows it."""

    name: str
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
    length_known: bool = True,
) -> list[StageReport]:
    """Describe each stage of a plan over a model on the meta device, where nothing is computed or stored.

    Args:
        plan (`StagePlan`): Its model must be on the device of the inputs.
        example_inputs (`Mapping[str, torch.Tensor]`): One micro-batch of the largest shape, with labels.
        state_values_per_parameter (`int`): What the optimizer keeps.
        length_known (`bool`, defaults to `True`): Whether the plan's steps mean anything.
    """
    counts = plan.partition.counts(plan.model)
    reports = []
    for stage in plan.stages:
        apply_freezing(plan.model, plan.partition, stage.curves, hold_batch_norm=stage.section.batch_norm == "frozen")
        reports.append(
            StageReport(
                name=stage.name,
                length=f"{stage.num_steps} steps" if length_known else "steps unknown",
                schedule=stage.schedule,
                groups=tuple(GroupRow(name, counts[name], stage.peak_rates.get(name)) for name in plan.partition),
                counted=plan.partition.counted(stage.section.train),
                batch_norm=_batch_norm_mode(plan.model),
                memory=_estimate_memory(plan.model, stage, counts, example_inputs, state_values_per_parameter),
            )
        )
    return reports


def _batch_norm_mode(model: nn.Module) -> str:
    model.train()
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return "none in the model"
    training = sum(layer.training for layer in layers)
    return f"{training} of {len(layers)} layers update their statistics"


def _estimate_memory(
    model: nn.Module,
    stage: PlannedStage,
    counts: Mapping[str, int],
    example_inputs: Mapping[str, torch.Tensor],
    state_values_per_parameter: int,
) -> MemoryEstimate:
    tensors = [*model.parameters(), *model.buffers()]
    trained_bytes = 4 * sum(counts[name] for name in stage.curves)
    return MemoryEstimate(
        weights=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        gradients=trained_bytes,
        optimizer=trained_bytes * state_values_per_parameter,
        activations=_saved_activation_bytes(model, example_inputs),
    )


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
            _saved_activation_bytes(plan.model, example_inputs)
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


def _saved_activation_bytes(model: nn.Module, example_inputs: Mapping[str, torch.Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass, parameters left out, each tensor counted once."""
    kept: dict[int, torch.Tensor] = {}
    model.train()
    # Fake tensors rather than meta ones: encoders look at the values of an attention mask unless they see a fake.
    with FakeTensorMode() as mode:
        own_tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        fakes: dict[str, torch.Tensor] = {name: mode.from_tensor(tensor) for name, tensor in own_tensors.items()}
        inputs = {name: mode.from_tensor(tensor) for name, tensor in example_inputs.items()}
        own = {id(tensor) for tensor in fakes.values()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            base = tensor if tensor._base is None else tensor._base
            if id(base) not in own:
                kept[id(base)] = base
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            functional_call(model, fakes, kwargs=inputs)
    return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
