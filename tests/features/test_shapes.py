"""Shapes that are found fast are those that torch finds."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmhf.training import memory

_ACTIVATIONS = (nn.Hardtanh(inplace=True), nn.Hardswish(), nn.SiLU(inplace=True), nn.GELU(), nn.ReLU())


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [layer for each in _ACTIVATIONS for layer in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), each)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixel_values):
        return self.layers(pixel_values)


class _Asked(TorchDispatchMode):
    """Notes what torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.add(func.overloadpacket)
        return func(*args, **kwargs or {})


def kept(precision):
    inputs = {"pixel_values": torch.empty(2, 3, 8, 6, device="meta")}
    return [(each.shape, each.dtype) for each in memory.saved_activations(_Network(), inputs, precision)]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_a_step_keeps_is_what_torch_keeps(monkeypatch, precision):
    found = kept(precision)
    monkeypatch.setattr(memory, "ShapesOnly", contextlib.nullcontext)
    assert found == kept(precision)


def test_torch_does_not_go_through_what_has_the_shape_of_its_input(monkeypatch):
    asked, real = _Asked(), memory.ShapesOnly
    monkeypatch.setattr(memory, "ShapesOnly", lambda: _both(asked, real()))
    kept("no")
    assert torch.ops.aten.convolution in asked.operations
    assert asked.operations.isdisjoint({torch.ops.aten.native_batch_norm, torch.ops.aten.hardtanh_})


@contextlib.contextmanager
def _both(*modes):
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield
