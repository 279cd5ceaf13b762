"""Linear layers whose frozen weights are kept in 8 or 4 bits, as torchao rounds them.

What torchao makes of a layer is kept as plain tensors, which are saved, hashed, moved and counted like all others, and
the gradient of its input is computed from them: torchao 0.18 would keep the weights of each 8-bit layer in full
precision from the forward pass to the backward pass, which is the memory that is to be saved.

Depends on torch, transformers and `errors` only, so that a release can carry this file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from mmhf.errors import InputError

_NF4_BLOCK = 64
"""Weights that share a scale in 4 bits (Dettmers et al., 2023, "QLoRA")."""
_NF4_SCALES = 256
"""Scales of 4-bit blocks that share a scale of their own, at most."""
# Of a CPU build: kernels of GPUs cannot be loaded, and torch 2.13 will want enums registered in another way.
_TALKATIVE = ("torchao", "torch.utils._pytree")


def quantize(encoder: PreTrainedModel, bits: int) -> None:
    """Round the weights of an encoder's linear layers to few bits, for good; they never train again.

    Embeddings, norms, biases and a language model's head stay as they are. In 8 bits each row has a scale (symmetric,
    torchao's `Int8WeightOnlyConfig`), in 4 bits each 64 weights (torchao's NF4, whose scales have 8 bits); layers
    that cannot be cut into several of those stay as they are, too.

    Args:
        encoder (`PreTrainedModel`): In fp32, changed in place; on the meta device, too. Layers that have few bits
            already keep them.
        bits (`int`): 8 or 4.

    Raises:
        `InputError`: torchao is not installed, the encoder has no such layers, or weights cannot be rounded.
    """
    head = encoder.get_output_embeddings()
    for name, module in list(encoder.named_modules()):
        if type(module) is nn.Linear and module is not head and (bits == 8 or _has_blocks(module.weight)):
            try:
                encoder.set_submodule(name, QuantizedLinear(module, bits))
            except ValueError as error:
                raise InputError(f"{encoder.config.name_or_path}: {name} cannot have {bits} bits: {error}") from error
    if not any(isinstance(module, QuantizedLinear) for module in encoder.modules()):
        raise InputError(
            f"{encoder.config.name_or_path}: a {encoder.config.model_type} has no linear layers that could have "
            f"{bits} bits; leave the quantization out, or choose another backbone"
        )


def require_torchao() -> Any:
    """torchao's quantization.

    Raises:
        `InputError`: torchao is not installed.
    """
    try:
        with _quiet():
            from torchao import quantization
    except ImportError as error:
        raise InputError("weights in 8 or 4 bits need torchao: pip install 'mmhf[quantization]'") from error
    return quantization


def describe_quantized(model: nn.Module) -> str:
    """Which parts of a model have few bits, and what that saves; empty where none has."""
    found: dict[tuple[str, int], list[QuantizedLinear]] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            found.setdefault((name.partition(".")[0], module.bits), []).append(module)
    described = []
    for (part, bits), layers in found.items():
        weights = sum(layer.in_features * layer.out_features for layer in layers)
        tensors = [layer.get_parameter(name) for layer in layers for name in layer.names]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
        described.append(
            f"{part}: {weights:,} weights in {bits} bits, {size:,.1f} MiB instead of {4 * weights / 2**20:,.1f}"
        )
    return "; ".join(described)


class QuantizedLinear(nn.Linear):
    """A linear layer whose weights were rounded to few bits and do not train.

    Args:
        layer (`nn.Linear`): The layer, which is left as it is.
        bits (`int`): 8 or 4.

    Attributes:
        names (`list[str]`): Of its parameters but the bias: `weight`, which holds integers, and what torchao needs to
            make numbers of them, such as `weight_scale`.

    Raises:
        `ValueError`: weights cannot be rounded.
    """

    def __init__(self, layer: nn.Linear, bits: int) -> None:
        nn.Module.__init__(self)  # nn.Linear would make weights
        self.in_features, self.out_features, self.bits = layer.in_features, layer.out_features, bits
        packed = _pack(layer.weight.detach(), bits)
        self._kind = type(packed)
        self._parts, self._attributes = packed.__tensor_flatten__()
        self.names = ["weight", *(f"weight_{part}" for part in self._parts[1:])]
        for name, part in zip(self.names, self._parts, strict=True):
            tensor = getattr(packed, part)
            if not tensor.is_meta and not tensor.isfinite().all():
                raise ValueError(f"its weights have no finite {part.replace('_', ' ')}")
            # Cloned: torchao's scales are views, of one value with the strides of many.
            own = tensor.clone(memory_format=torch.contiguous_format)
            self.register_parameter(name, nn.Parameter(own, requires_grad=False))
        self.register_parameter("bias", layer.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features), in the precision of the input, or that of autocast."""
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            product: Tensor = _ByFrozen.apply(input, self, *(self.get_parameter(name) for name in self.names))
            return product if self.bias is None else product + self.bias.to(product.dtype)

    def packed(self, tensors: Sequence[Tensor]) -> Any:
        """torchao's tensor of this layer's parts."""
        attributes = dict(self._attributes)
        if "tensor_meta" in attributes:  # of NF4; the layer may have moved since
            attributes["tensor_meta"] = dataclasses.replace(attributes["tensor_meta"], device=tensors[0].device)
        parts = dict(zip(self._parts, tensors, strict=True))
        return self._kind.__tensor_unflatten__(parts, attributes, None, None)

    def extra_repr(self) -> str:
        """As of `nn.Linear`, with the bits."""
        return f"{super().extra_repr()}, bits={self.bits}"


class _ByFrozen(torch.autograd.Function):
    """A product with frozen weights, which keeps nothing but their few bits for the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: QuantizedLinear, *tensors: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(*tensors)
        return functional.linear(input, layer.packed(tensors))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        packed, dtype = ctx.layer.packed(ctx.saved_tensors), gradient.dtype
        if ctx.layer.bits == 8:  # as in torchao's forward pass: its rows are scaled beside the product
            of_input = (gradient * packed.scale.to(dtype).flatten()) @ packed.qdata.to(dtype)
        else:
            of_input = gradient @ packed.to(dtype)
        return of_input, *(None for _ in range(1 + len(ctx.saved_tensors)))


def _pack(weight: Tensor, bits: int) -> Any:
    torchao = require_torchao()
    if bits == 4:
        blocks = weight.numel() // _NF4_BLOCK
        scales = next(count for count in range(min(_NF4_SCALES, blocks), 0, -1) if blocks % count == 0)
        return torchao.to_nf4(weight, _NF4_BLOCK, scales)
    with torch.device("meta"):
        holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    holder.weight = nn.Parameter(weight, requires_grad=False)
    # Otherwise it changes settings of torch.compile for the whole process.
    torchao.quantize_(holder, torchao.Int8WeightOnlyConfig(set_inductor_config=False))
    return holder.weight


def _has_blocks(weight: Tensor) -> bool:
    return weight.numel() % _NF4_BLOCK == 0 and weight.numel() > _NF4_BLOCK


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
