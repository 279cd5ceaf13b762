"""Frozen weights once more in the precision that is computed in, so that no step casts them again.

Autocast casts the weights of each linear layer and convolution in every forward pass. Of what trains it has to. Of
what is frozen it makes the same copy each time: a kernel to launch for each tensor, and its weights read once more.
What is kept is the very tensor that autocast would make, so that all results stay as they are, to the bit; and the
weights themselves stay in fp32, for whoever saves, hashes or thaws them.
"""

from __future__ import annotations

import os
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

SWITCH = "MMHF_FROZEN_COPIES"

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_KEPT = "_mmhf_copies"
_DEVICES = ("cuda", "cpu")
_KINDS = (nn.Linear, nn.Conv2d)


def why_no_copies(device: torch.device, precision: str) -> str | None:
    """Why frozen weights are not copied; None where they are.

    Args:
        device (`torch.device`): Where training is.
        precision (`str`): What is computed under autocast: `bf16`, `fp16`, or `no`.
    """
    if precision not in _DTYPES:
        return "all is computed in fp32"
    if os.environ.get(SWITCH) == "off":
        return f"{SWITCH}=off"
    return None if device.type in _DEVICES else f"not on {device.type}"


def describe_copies(device: torch.device, precision: str) -> str:
    """What `mmhf plan` says of them; the arguments are those of `why_no_copies`."""
    if (reason := why_no_copies(device, precision)) is not None:
        return f"as they are ({reason})"
    return f"also in the precision that is computed in, so that no step casts them again ({SWITCH}=off turns it off)"


def keep_copies(model: nn.Module, precision: str) -> int:
    """Give each frozen linear layer and convolution a copy of its weights, and take back those of what has thawed.

    Args:
        model (`nn.Module`): Frozen as its stage asks.
        precision (`str`): `bf16` or `fp16`; the copies are used under autocast alone.

    Returns:
        `int`: bytes of the copies.
    """
    release_copies(model)
    for module in model.modules():
        is_frozen = type(module) in _KINDS and not any(each.requires_grad for each in module.parameters(recurse=False))
        if is_frozen and module.weight.dtype == torch.float32:
            module.__dict__[_KEPT] = _Copies(module, _DTYPES[precision])
            module.forward = MethodType(_forward, module)
    kept = [module.__dict__[_KEPT] for module in model.modules() if _KEPT in module.__dict__]
    return sum(copies.num_bytes for copies in kept)


def release_copies(model: nn.Module) -> None:
    """Undo `keep_copies`."""
    for module in model.modules():
        if module.__dict__.pop(_KEPT, None) is not None:
            del module.forward


class _Copies:
    """Weights and bias of a layer in another precision, made again where somebody has written to the originals."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._made_of: tuple[tuple[int, int], ...] = ()
        self._tensors: list[Tensor | None] = []
        self.of(module)

    def of(self, module: nn.Module) -> list[Tensor | None]:
        if torch.compiler.is_compiling():  # a stage compiles what it has frozen, and nobody writes to it until it ends
            return self._tensors
        originals: list[Tensor | None] = [module.weight, module.bias]  # type: ignore[list-item]
        state = tuple((id(each), each._version) for each in originals if each is not None)
        if state != self._made_of:
            self._tensors = [None if each is None else each.detach().to(self.dtype) for each in originals]
            self._made_of = state
        return self._tensors

    @property
    def num_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self._tensors if each is not None)


def _forward(module: nn.Module, inputs: Tensor) -> Tensor:
    copies: _Copies = module.__dict__[_KEPT]
    kind = inputs.device.type
    if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) != copies.dtype:
        plain: Tensor = type(module).forward(module, inputs)
        return plain
    weight, bias = copies.of(module)
    assert weight is not None
    if isinstance(module, nn.Conv2d):
        convolved: Tensor = module._conv_forward(inputs, weight, bias)
        return convolved
    return functional.linear(inputs, weight, bias)


# A bound method is pickled by the name of its function: a pickled module comes back with its class's `forward`.
_forward.__name__ = "forward"
