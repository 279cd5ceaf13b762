"""A model's weights while it trains: frozen ones stand still, all processes hold the same, the best are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MethodType

import torch
import xxhash
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from mmhf.errors import DamagedError
from mmhf.files import whole_file
from mmhf.models.partition import Partition
from mmhf.parallel import gather


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stands in for `Module.train` on a frozen module."""
    return module


# A bound method is pickled by the name of its function: a pickled frozen module comes back with its class's `train`.
_stay_in_eval.__name__ = "train"


def hold_in_eval(module: nn.Module) -> None:
    """Put a module into eval mode and keep it there, whoever calls `train()` on it or its parents.

    `Trainer.training_step` calls `model.train()` at every step; without this, dropout of a frozen module stays on and
    its batch-norm statistics drift.
    """
    module.eval()
    module.train = MethodType(_stay_in_eval, module)  # type: ignore[method-assign]


def release_from_eval(model: nn.Module) -> None:
    """Undo `hold_in_eval` on a model and everything in it."""
    for module in model.modules():
        module.__dict__.pop("train", None)


def apply_freezing(
    model: nn.Module, partition: Partition, trained: Collection[str], *, hold_batch_norm: bool = False
) -> None:
    """Let exactly the groups `trained` train.

    The other groups' parameters require no gradient, and the modules that hold nothing else are kept in eval mode: no
    dropout, no drifting batch-norm statistics, no autograd graph.

    Args:
        model (`nn.Module`): The unwrapped model.
        partition (`Partition`): Its parameter groups.
        trained (`Collection[str]`): Names of the groups that train.
        hold_batch_norm (`bool`, defaults to `False`): Keep the statistics of all batch-norm layers; those in trained
            groups still train their weights and biases.
    """
    release_from_eval(model)
    for parameters in _forms(model):
        for group, names in partition.items():
            for name in names:
                parameters[name].requires_grad_(group in trained)
    for _, module in partition.frozen_modules(model, trained):
        hold_in_eval(module)
    if hold_batch_norm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                hold_in_eval(module)


@contextlib.contextmanager
def unmoved_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch-norm layers have the statistics afterwards that they have now."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(buffer, buffer.clone()) for layer in layers if layer.training for buffer in layer.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _forms(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """A model's parameters by name; those that `fully_shard` split come twice, as kept and as gathered for a step.

    What is gathered is made once, and remembers whether it trained then: torch 2.13 does not look again.
    """
    yield dict(model.named_parameters())
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not shards:
        return
    for module in shards:
        module.unshard()
    yield dict(model.named_parameters())
    for module in shards:
        module.reshard()


def is_sharded() -> bool:
    """Whether FSDP or DeepSpeed split weights, gradients or optimizer state over the processes."""
    return AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def gradients_are_visible() -> bool:
    """Whether `grad` holds a parameter's gradient; DeepSpeed moves gradients into buffers of its own."""
    visible: bool = AcceleratorState().distributed_type != DistributedType.DEEPSPEED
    return visible


def weights_hash(model: nn.Module) -> str:
    """`tensors_hash` of all parameters and buffers."""
    return tensors_hash(model.state_dict())


def tensors_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """xxh3 over tensors and their names."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(weights.items()):
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


_HASH = "hash"
_WAY_OUT = "remove the run's checkpoints of this stage, so that it is trained again, or restore the file"


class BestWeights:
    """A file with a model's whole state.

    It is written when an evaluation is the best of its stage. A run that is killed and resumed before that evaluation
    writes it again with the same content, because training is deterministic.

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, model: nn.Module) -> None:
        """Keep the model's parameters and buffers; the file appears whole or not at all."""
        # Cloned: tied tensors share storage, which safetensors refuses.
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        with whole_file(self.path) as temporary:
            save_file(weights, temporary, metadata={_HASH: tensors_hash(weights)})

    def load(self, model: nn.Module) -> None:
        """Put the kept parameters and buffers back, in place.

        Raises:
            DamagedError: The file is gone, or is not as it was written.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                expected = (file.metadata() or {}).get(_HASH)
            weights = load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise DamagedError(
                f"{self.path}: the best weights of the stage cannot be read ({error}); {_WAY_OUT}"
            ) from error
        if expected not in (None, tensors_hash(weights)):
            raise DamagedError(f"{self.path}: the best weights of the stage are damaged; {_WAY_OUT}")
        model.load_state_dict(weights)
