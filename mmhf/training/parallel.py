"""Several processes train one model: what they exchange of it, or how it is split among them."""

from __future__ import annotations

from accelerate.utils import DistributedDataParallelKwargs, is_compiled_module
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, TrainingArguments


def find_data_parallel(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel around a model, which may be compiled itself; None where there is none."""
    inner = model._orig_mod if is_compiled_module(model) else model
    return inner if isinstance(inner, DistributedDataParallel) else None


def synchronise_what_trains(
    model: nn.Module, handler: DistributedDataParallelKwargs | None, args: TrainingArguments
) -> None:
    """Let DistributedDataParallel, where there is one, begin anew with the parameters that require a gradient now.

    It takes them up when it is made, and never looks at what was frozen then. So it is made again, in place, because
    Trainer's loop holds on to it. What a stage trains is fixed and all of it gets a gradient: no step is searched for
    parameters without one, and gradients live in the buffers that are exchanged.

    Args:
        model (`nn.Module`): As it is wrapped; its parameters are frozen as the stage asks.
        handler (`DistributedDataParallelKwargs`, *optional*): What accelerate made it with.
        args (`TrainingArguments`): With `ddp_find_unused_parameters`, each step is searched for parameters without a
            gradient.
    """
    if (parallel := find_data_parallel(model)) is None:
        return
    find_unused = bool(args.ddp_find_unused_parameters)
    # A static graph fails when the first backward pass exchanges nothing (torch 2.13, `expect_autograd_hooks_`).
    is_static = not find_unused and args.gradient_accumulation_steps == 1
    options = {} if handler is None else handler.to_kwargs()
    options.update(
        device_ids=parallel.device_ids,
        output_device=parallel.output_device,
        find_unused_parameters=find_unused,
        static_graph=is_static,
        gradient_as_bucket_view=True,
    )
    parallel.__init__(parallel.module, **options)  # type: ignore[misc]


def ready_for_sharding(model: PreTrainedModel) -> None:
    """Let accelerate's FSDP2 ask a model for embeddings that it has not got.

    accelerate 1.15 shards these by themselves, and fails on models, such as CLIP, that raise when they are asked.
    """
    try:
        model.get_input_embeddings()
    except NotImplementedError:
        model.get_input_embeddings = lambda: None  # type: ignore[assignment, method-assign, return-value]


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part; then all of them have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
