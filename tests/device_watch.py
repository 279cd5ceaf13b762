"""What makes a program wait for its device, seen from where torch dispatches operators."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmhf.conventions import HOST_DEVICES

# Operators whose result's value or shape the program must know before it goes on.
_LOOKS = ("_local_scalar_dense", "nonzero", "unique", "_unique2", "unique_dim", "masked_select", "is_nonzero", "equal")


class Waits(TorchDispatchMode):
    """Notes each look at a value, and each copy from one type of device to another.

    Args:
        answer (`Callable[[], Any]`, *optional*): What a look at one value gives, for tensors that have none.
    """

    def __init__(self, answer: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _LOOKS or (name.startswith("index") and _has_bool_index(args)):
            self.seen.append(f"{name} in {_caller()}")
        elif moved := _moves(name, args, kwargs):
            self.seen.append(f"{moved} in {_caller()}")
        if name == "_local_scalar_dense" and self.answer is not None:
            return self.answer()
        return func(*args, **kwargs)


def _caller() -> str:
    """The innermost line of code that is not torch's own."""
    frames = traceback.extract_stack()
    outside = [
        frame for frame in frames if f"{os.sep}torch{os.sep}" not in frame.filename and frame.filename != __file__
    ]
    return f"{outside[-1].filename}:{outside[-1].lineno}" if outside else "nowhere"


def _has_bool_index(args: Any) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else []
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _moves(name: str, args: Any, kwargs: Any) -> str | None:
    if name == "_to_copy" and kwargs.get("device") is not None:
        source, target = args[0].device.type, torch.device(kwargs["device"]).type
    elif name == "copy_":
        source, target = args[1].device.type, args[0].device.type
    else:
        return None
    return None if source == target else f"copy from {source} to {target}"


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let mmhf take the ways that it takes on devices whose values it must not look at."""
    before = set(HOST_DEVICES)
    HOST_DEVICES.clear()
    try:
        yield
    finally:
        HOST_DEVICES.update(before)
