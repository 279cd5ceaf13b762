"""Freeze and thaw the groups of a model, so that frozen means frozen."""

from __future__ import annotations

from collections.abc import Collection
from types import MethodType

from torch import nn

from mmhf.models.partition import Partition


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
    parameters = dict(model.named_parameters())
    for group, names in partition.items():
        for name in names:
            parameters[name].requires_grad_(group in trained)
    for _, module in partition.frozen_modules(model, trained):
        hold_in_eval(module)
    if hold_batch_norm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                hold_in_eval(module)
