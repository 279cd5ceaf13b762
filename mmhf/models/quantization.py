"""Linear layers whose frozen weights are kept in 8 or 4 bits, as torchao or bitsandbytes rounds them.

What a library makes of a layer is kept as plain tensors, which are saved, hashed, moved and counted like all others,
and the gradient of its input is computed from them: torchao 0.18 would keep the weights of each 8-bit layer in full
precision from the forward pass to the backward pass, which is the memory that is to be saved.

Depends on torch, transformers and `errors` only, so that a release can carry this file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from mmhf.errors import InputError

_NF4_BLOCK = 64
"""Weights that share a scale in 4 bits (Dettmers et al., 2023, "QLoRA")."""
_NF4_SCALES = 256
"""Scales of torchao's 4-bit blocks that share a scale of their own, at most."""
# On a CPU: kernels of GPUs, or of the Hub, cannot be loaded, and torch 2.13 will want enums registered in another way.
_TALKATIVE = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")
_EXTRAS = {"torchao": "quantization", "bitsandbytes": "bitsandbytes"}


def quantize(encoder: PreTrainedModel, values: Mapping[str, Any]) -> None:
    """Round the weights of an encoder's linear layers to few bits, for good; they never train again.

    Embeddings, norms, biases and a language model's head stay as they are. In 8 bits each row has a scale (symmetric,
    torchao's `Int8WeightOnlyConfig`), in 4 bits each 64 weights (NF4; torchao's scales have 8 bits); layers that
    cannot be cut into several of those stay as they are, too.

    Args:
        encoder (`PreTrainedModel`): In fp32, changed in place; on the meta device, too. Layers that have few bits
            already keep them.
        values (`Mapping`): `bits`, 8 or 4, and `library`, `torchao` or, in 4 bits, `bitsandbytes`.

    Raises:
        `InputError`: the library is not installed, the encoder has no such layers, or weights cannot be rounded.
    """
    require_library(values["library"])
    bits, head = values["bits"], encoder.get_output_embeddings()
    for name, module in list(encoder.named_modules()):
        if type(module) is nn.Linear and module is not head and (bits == 8 or _has_blocks(module.weight)):
            try:
                encoder.set_submodule(name, QuantizedLinear(module, bits, values["library"]))
            except ValueError as error:
                raise InputError(f"{encoder.config.name_or_path}: {name} cannot have {bits} bits: {error}") from error
    if not any(isinstance(module, QuantizedLinear) for module in encoder.modules()):
        raise InputError(
            f"{encoder.config.name_or_path}: a {encoder.config.model_type} has no linear layers that could have "
            f"{bits} bits; leave the quantization out, or choose another backbone"
        )


def require_library(name: str) -> Any:
    """The library that rounds weights: torchao's `quantization`, or bitsandbytes.

    Raises:
        `InputError`: it is not installed.
    """
    try:
        with quietly():
            library = importlib.import_module(name)
            return importlib.import_module("torchao.quantization") if name == "torchao" else library
    except ImportError as error:
        raise InputError(f"weights in few bits need {name}: pip install 'mmhf[{_EXTRAS[name]}]'") from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Load torchao and bitsandbytes without what they warn of; peft loads them where they are installed."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def quantized_layers(model: nn.Module) -> dict[str, list[QuantizedLinear]]:
    """Part of a model, such as `vision` → its layers of few bits, all of as many; only parts that have some."""
    found: dict[str, list[QuantizedLinear]] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            found.setdefault(name.partition(".")[0], []).append(module)
    return found


def describe_quantized(model: nn.Module) -> str:
    """Which parts of a model have few bits, and what that saves; empty where none has."""
    described = []
    for part, layers in quantized_layers(model).items():
        bits, weights = layers[0].bits, sum(layer.in_features * layer.out_features for layer in layers)
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
        library (`str`, defaults to `"torchao"`): What rounds them.

    Attributes:
        names (`list[str]`): Of its parameters but the bias: integers, and what the library needs to make numbers of
            them, such as `weight_qdata` and `weight_scale`.

    Raises:
        `InputError`: the library is not installed.
        `ValueError`: weights cannot be rounded.
    """

    def __init__(self, layer: nn.Linear, bits: int, library: str = "torchao") -> None:
        nn.Module.__init__(self)  # nn.Linear would make weights
        self.in_features, self.out_features, self.bits = layer.in_features, layer.out_features, bits
        make = _ByBitsandbytes.make if library == "bitsandbytes" else _ByTorchao.make
        rounded, parts = make(layer.weight.detach(), bits)
        self.rounded: _Rounded = rounded
        self.names = [f"weight_{part}" for part in parts]
        for name, (part, tensor) in zip(self.names, parts.items(), strict=True):
            if not tensor.is_meta and not tensor.isfinite().all():
                raise ValueError(f"its weights have no finite {part.replace('_', ' ')}")
            # Cloned: torchao's scales are views, of one value with the strides of many.
            own = tensor.clone(memory_format=torch.contiguous_format)
            self.register_parameter(name, nn.Parameter(own, requires_grad=False))
        self.register_parameter("bias", layer.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features), in the precision of the input, or that of autocast."""
        kind = input.device.type
        if kind == "meta":  # which knows no autocast; operations are counted as of a plain layer
            return functional.linear(input, self.weight.to(input.dtype), self.bias)
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            product: Tensor = _ByFrozen.apply(input, self.rounded, *self._parts())
            return product if self.bias is None else product + self.bias.to(product.dtype)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out_features, in_features): the rounded weights as numbers, made anew each time, without a gradient.

        Some attention multiplies with the weights of its layers itself (torchvision's Swin, timm's BEiT, EVA and
        Swin v2), and some embeddings cast images to the precision of theirs (SigLIP 2), which integers are not.
        """
        parts = self._parts()
        return self.rounded.dense(parts, next(part.dtype for part in parts if part.is_floating_point()))

    def _parts(self) -> list[Tensor]:
        return [self.get_parameter(name) for name in self.names]

    def extra_repr(self) -> str:
        """As of `nn.Linear`, with the bits."""
        return f"{super().extra_repr()}, bits={self.bits}"


class _Rounded(Protocol):
    """What a library says of a layer's weights beside the tensors that hold them."""

    def product(self, input: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """(..., in_features) → (..., out_features), as the library computes it."""
        ...

    def product_back(self, gradient: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Gradient of the output → gradient of the input."""
        ...

    def dense(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """(out_features, in_features): the rounded weights as numbers of this precision."""
        ...


class _ByFrozen(torch.autograd.Function):
    """A product with frozen weights, which keeps nothing but their few bits for the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, rounded: _Rounded, *parts: Tensor) -> Tensor:
        ctx.rounded = rounded
        ctx.save_for_backward(*parts)
        return rounded.product(input, parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_input = ctx.rounded.product_back(gradient, ctx.saved_tensors)
        return of_input, *(None for _ in range(1 + len(ctx.saved_tensors)))


@dataclasses.dataclass(frozen=True)
class _ByTorchao:
    """Of torchao's tensors: their class, the names of what they consist of, and the rest."""

    kind: Any
    names: list[str]
    attributes: dict[str, Any]

    @classmethod
    def make(cls, weight: Tensor, bits: int) -> tuple[_ByTorchao, dict[str, Tensor]]:
        torchao = require_library("torchao")
        if bits == 4:
            blocks = weight.numel() // _NF4_BLOCK
            scales = next(count for count in range(min(_NF4_SCALES, blocks), 0, -1) if blocks % count == 0)
            packed = torchao.to_nf4(weight, _NF4_BLOCK, scales)
        else:
            with torch.device("meta"):
                holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            holder.weight = nn.Parameter(weight, requires_grad=False)
            # Otherwise it changes settings of torch.compile for the whole process.
            torchao.quantize_(holder, torchao.Int8WeightOnlyConfig(set_inductor_config=False))
            packed = holder.weight
        names, attributes = packed.__tensor_flatten__()
        return cls(type(packed), names, attributes), {name: getattr(packed, name) for name in names}

    def product(self, input: Tensor, parts: Sequence[Tensor]) -> Tensor:
        return functional.linear(input, self._packed(parts))

    def product_back(self, gradient: Tensor, parts: Sequence[Tensor]) -> Tensor:
        packed, dtype = self._packed(parts), gradient.dtype
        if self._has_8_bits:  # as in the forward pass, rows are scaled beside the product
            of_input: Tensor = (gradient * packed.scale.to(dtype).flatten()) @ packed.qdata.to(dtype)
            return of_input
        return gradient @ self.dense(parts, dtype)

    def dense(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        packed = self._packed(parts)
        numbers: Tensor = packed.dequantize(dtype) if self._has_8_bits else packed.to(dtype)
        return numbers

    @property
    def _has_8_bits(self) -> bool:
        return "qdata" in self.names

    def _packed(self, parts: Sequence[Tensor]) -> Any:
        attributes = dict(self.attributes)
        if "tensor_meta" in attributes:  # of NF4; the layer may have moved since
            attributes["tensor_meta"] = dataclasses.replace(attributes["tensor_meta"], device=parts[0].device)
        return self.kind.__tensor_unflatten__(dict(zip(self.names, parts, strict=True)), attributes, None, None)


@dataclasses.dataclass(frozen=True)
class _ByBitsandbytes:
    """Of bitsandbytes' 4 bits: the shape of the weights."""

    shape: torch.Size

    @classmethod
    def make(cls, weight: Tensor, bits: int) -> tuple[_ByBitsandbytes, dict[str, Tensor]]:
        library = require_library("bitsandbytes")
        packed, state = library.functional.quantize_4bit(weight, blocksize=_NF4_BLOCK, quant_type="nf4")
        return cls(weight.shape), {"packed": packed, "absmax": state.absmax}

    def product(self, input: Tensor, parts: Sequence[Tensor]) -> Tensor:
        product: Tensor = _bitsandbytes().matmul_4bit(input, parts[0].t(), self._state(parts, input.dtype))
        return product

    def product_back(self, gradient: Tensor, parts: Sequence[Tensor]) -> Tensor:
        return gradient @ self.dense(parts, gradient.dtype)

    def dense(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        numbers: Tensor = _bitsandbytes().functional.dequantize_4bit(parts[0], self._state(parts, dtype))
        return numbers

    def _state(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Any:
        # Its kernels take scales in fp32 alone.
        values = {"absmax": parts[1].float(), "shape": self.shape, "dtype": dtype}
        return _bitsandbytes().functional.QuantState(**values, blocksize=_NF4_BLOCK, quant_type="nf4")


def _bitsandbytes() -> Any:
    """The library, which was loaded when the layer was made."""
    return importlib.import_module("bitsandbytes")


def _has_blocks(weight: Tensor) -> bool:
    return weight.numel() % _NF4_BLOCK == 0 and weight.numel() > _NF4_BLOCK
