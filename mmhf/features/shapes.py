"""Shapes of what a model computes, found faster than torch finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_SAME_SHAPE = (_ATEN.hardtanh, _ATEN.hardswish, _ATEN.silu, _ATEN.gelu, _ATEN.relu)
_IN_PLACE = (_ATEN.hardtanh_, _ATEN.hardswish_, _ATEN.silu_, _ATEN.gelu_, _ATEN.relu_)


class ShapesOnly(TorchDispatchMode):
    """Gives tensors without values their shapes, where torch (2.13) goes through each step of an operation in Python.

    For fakes and tensors on the meta device: batch norm and activations, which are most of a convolutional network's
    operations.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        operation = func.overloadpacket
        if operation in _IN_PLACE:
            return args[0]
        if operation in _SAME_SHAPE:
            return torch.empty_like(args[0])
        if operation is _ATEN.native_batch_norm:
            pixels, training = args[0], args[5]
            mean, deviation = (pixels.new_empty(pixels.shape[1] * training) for _ in range(2))
            return torch.empty_like(pixels), mean, deviation
        return func(*args, **kwargs or {})
