"""What must hold when a stage begins; each failure would otherwise be silent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from mmhf.parallel import gather


def is_sharded() -> bool:
    """Whether FSDP or DeepSpeed split weights, gradients or optimizer state over the processes."""
    return AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def gradients_are_visible() -> bool:
    """Whether `grad` holds a parameter's gradient; DeepSpeed moves gradients into buffers of its own."""
    return AcceleratorState().distributed_type != DistributedType.DEEPSPEED


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def share_buffers(model: nn.Module, args: TrainingArguments) -> None:
    """Give all processes the first one's buffers.

    DistributedDataParallel does so before each training step; after the step, each process has updated the batch-norm
    statistics with its own samples, and evaluation or a stage boundary would see as many models as processes.
    """
    if args.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def check_ranks_agree(model: nn.Module, args: TrainingArguments) -> None:
    """Compare the weights of all processes; sharded ones are held once and have nothing to be compared with.

    Raises:
        RuntimeError: They differ: some gradient was not synchronised.
    """
    if args.world_size == 1 or any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return
    hashes = gather(weights_hash(model))
    if len(set(hashes)) > 1:
        raise RuntimeError(
            f"the {args.world_size} processes hold different weights ({', '.join(each[:8] for each in hashes)}) at a "
            "stage boundary; go on from the last checkpoint and report this"
        )


def check_gradients(model: nn.Module, names: Sequence[str]) -> None:
    """Check that parameters which have just been thawed received a gradient.

    Raises:
        RuntimeError: Some have none: the optimizer would pass them over without a word.
    """
    parameters = dict(model.named_parameters())
    without = [name for name in names if parameters[name].grad is None]
    if without:
        raise RuntimeError(
            f"{len(without)} of {len(names)} parameters that this stage trains received no gradient, the first is "
            f"{without[0]}; the model does not use them, or a compiled graph was made while they were frozen"
        )
