"""Memory of a step: what a stage needs, how many samples fit at once, and what to say where it runs out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from mmhf.errors import InputError
from mmhf.training.planned_stage import PlannedStage
from mmhf.training.stages import StagePlan

GIB = 2**30
Inputs = Mapping[str, torch.Tensor]

_QUOTA_FILE = Path("/sys/fs/cgroup/memory.max")
# Of a card, the rest is for workspaces and what comes and goes within a step; of a CPU's memory, for data and others.
_USABLE = {"cuda": 0.85, "cpu": 0.6}
_KILLED = "is killed by signal: Killed"
_SHORTAGES = ("can't allocate memory", "not enough memory", "out of memory", _KILLED)
"""How torch says so."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training one stage takes on each device, without what the framework itself needs.

    Attributes:
        weights (`int`): Parameters and buffers.
        gradients (`int`): Of what trains.
        optimizer (`int`): State of what trains: two values a parameter for Adam, one for SGD with momentum.
        activations (`int`): What the backward pass keeps of one micro-batch of the largest shape. Where all trains in
            bf16, the sum came within 3 % of the peak that an H100 measured.
        shared (`int`): Of the activations, what is as large as some weights, such as those that autocast has cast: it
            does not grow with the batch.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    shared: int = 0

    @property
    def fixed(self) -> int:
        """What does not grow with the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total_gib(self) -> float:
        """All of it, in GiB."""
        return (self.fixed + self.activations) / GIB


def estimate_memory(
    plan: StagePlan, stage: PlannedStage, example_inputs: Inputs, *, state_values: int, precision: str = "no"
) -> MemoryEstimate:
    """Estimate the memory of a stage whose parameters are frozen as it asks.

    Args:
        plan (`StagePlan`): Its model may be on any device, such as `meta`.
        stage (`PlannedStage`): One of its stages.
        example_inputs (`Mapping[str, torch.Tensor]`): One micro-batch of the largest shape, with labels.
        state_values (`int`): Values that the optimizer keeps for each parameter.
        precision (`str`, defaults to `"no"`): What is computed under autocast: `bf16`, `fp16`, or nothing.
    """
    counts = plan.partition.counts(plan.model)
    trained_bytes = 4 * sum(counts[name] for name in stage.curves)
    kept = saved_activations(plan.model, example_inputs, precision)
    shapes = {_sides(parameter) for parameter in plan.model.parameters() if parameter.ndim > 1}
    return MemoryEstimate(
        weights=sum(_size(tensor) for tensor in (*plan.model.parameters(), *plan.model.buffers())),
        gradients=trained_bytes,
        optimizer=trained_bytes * state_values,
        activations=sum(map(_size, kept)),
        shared=sum(_size(tensor) for tensor in kept if _sides(tensor) in shapes),
    )


def fits_at_once(memory: MemoryEstimate, batch_size: int, device: torch.device) -> int | None:
    """Samples that fit through a model at once, by the estimate for one batch; None where nobody knows.

    Args:
        memory ([`MemoryEstimate`]): Of a stage.
        batch_size (`int`): The batch that it was made for.
        device (`torch.device`): Where training will be.
    """
    there = usable_memory(device)
    if there is None:
        return None
    a_sample = max((memory.activations - memory.shared) / batch_size, 1.0)
    return max(int((there - memory.fixed - memory.shared) / a_sample), 0)


def largest_share(total: int, fits: int) -> int:
    """The largest divisor of a number that is not above what fits; 1 where nothing does.

    Examples:
        >>> largest_share(4096, 731)
        512
    """
    return next(size for size in range(max(min(total, fits), 1), 0, -1) if total % size == 0)


def usable_memory(device: torch.device) -> int | None:
    """Bytes of a device that a step may fill: of a card most, of a CPU's memory this process's share of the half.

    None where a device does not say how much it has.
    """
    there = device_memory(device)
    if there is None:
        return None
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    return int(there * _USABLE[device.type] / sharing)


def device_memory(device: torch.device) -> int | None:
    """Bytes of a card, or of the machine's memory within the quota of its container; None for other devices."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu":
        return None
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        quota = _QUOTA_FILE.read_text().strip()
    except OSError:
        return there
    return min(there, int(quota)) if quota.isdecimal() else there


@contextlib.contextmanager
def shortage_named(explain: Callable[[], str]) -> Iterator[None]:
    """Say in one line what to change where memory runs out.

    Args:
        explain (`Callable`): Gives that line.

    Raises:
        InputError: The memory of a device, or of the machine, has run out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _SHORTAGES):
            raise
        said = " ".join(str(error).split())[:120] or type(error).__name__
        was_killed = _KILLED in said
        what = (
            "a process that reads data was killed; lower training.dataloader_num_workers" if was_killed else explain()
        )
        raise InputError(f"{what} ({said})") from error


def saved_activations(model: nn.Module, example_inputs: Inputs, precision: str = "no") -> list[torch.Tensor]:
    """Fakes of what autograd keeps for the backward pass, parameters left out, each tensor once.

    Args:
        model (`nn.Module`): On any device; nothing is computed.
        example_inputs (`Mapping[str, torch.Tensor]`): A batch, of which shapes count.
        precision (`str`, defaults to `"no"`): What is computed under autocast: `bf16`, `fp16`, or nothing.
    """
    kept: dict[int, torch.Tensor] = {}
    model.train()
    # Fake tensors of a CPU rather than meta ones: of attention these keep all products, which no device does, and
    # encoders look at the values of an attention mask unless they see a fake.
    with FakeTensorMode():
        fakes: dict[int, torch.Tensor] = {}
        own: dict[str, torch.Tensor] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if id(tensor) not in fakes:
                fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                is_parameter = isinstance(tensor, nn.Parameter)
                fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
            own[name] = fakes[id(tensor)]
        inputs = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in example_inputs.items()}
        not_counted = {id(tensor) for tensor in fakes.values()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            base = tensor if tensor._base is None else tensor._base
            if id(base) not in not_counted:
                kept[id(base)] = base
            return tensor

        low = torch.autocast("cpu", torch.bfloat16, enabled=precision != "no")
        with saved_tensors_hooks(keep, lambda tensor: tensor), low:
            functional_call(model, own, kwargs=inputs)
    return list(kept.values())


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _sides(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(sorted(tensor.shape))
