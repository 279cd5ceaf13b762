"""Let timm load without wandb, transformers without torchao, and peft without bitsandbytes.

`timm.utils.summary` imports wandb where it is installed, which takes a second, and is for timm's own training script
alone; Trainer loads wandb by itself when a run is tracked. `transformers.quantizers` imports torchao, which takes
three seconds and warns of kernels for other GPUs, for the one function that saves what transformers has quantised.
`peft.helpers`, which Trainer loads where peft is installed, imports bitsandbytes for a measure of weights that it has
rounded, and with it comes a warning of kernels on each start.
Seen with timm 1.0.31, transformers 5.24 and peft 0.21; retire what they import where they use it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast


class _WithoutWandb(importlib.machinery.SourceFileLoader):
    """Loads a module that finds no wandb."""

    def exec_module(self, module: ModuleType) -> None:
        if "wandb" in sys.modules:
            super().exec_module(module)
            return
        sys.modules["wandb"] = cast(ModuleType, None)  # `import wandb` raises ImportError
        try:
            super().exec_module(module)
        finally:
            del sys.modules["wandb"]


class _WithoutTorchao(importlib.machinery.SourceFileLoader):
    """Loads a module that is told of torchao later, and then imports of it what it calls."""

    def exec_module(self, module: ModuleType) -> None:
        utils: Any = importlib.import_module("transformers.utils")
        is_available = utils.is_torchao_available
        if "torchao" in sys.modules or not is_available():
            super().exec_module(module)
            return
        utils.is_torchao_available = lambda: False
        try:
            super().exec_module(module)
        finally:
            utils.is_torchao_available = is_available
        module.__dict__.update(is_torchao_available=is_available, flatten_tensor_state_dict=_flatten)


def _flatten(state_dict: dict[str, Any]) -> Any:
    support = importlib.import_module("torchao.prototype.safetensors.safetensors_support")
    return support.flatten_tensor_state_dict(state_dict)


class _BitsandbytesLater(importlib.machinery.SourceFileLoader):
    """Loads a module that gets bitsandbytes once it uses something of it."""

    def exec_module(self, module: ModuleType) -> None:
        spec = importlib.machinery.PathFinder.find_spec("bitsandbytes")
        if "bitsandbytes" in sys.modules or spec is None:
            super().exec_module(module)
            return
        stand_in = sys.modules["bitsandbytes"] = _Later("bitsandbytes")
        stand_in.__spec__ = spec  # for those who only ask whether it is installed
        try:
            super().exec_module(module)
        finally:
            del sys.modules["bitsandbytes"]


class _Later(ModuleType):
    """Stands for a module until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


_LOADERS: dict[str, type[importlib.machinery.SourceFileLoader]] = {
    "timm.utils.summary": _WithoutWandb,
    "transformers.quantizers.quantizer_torchao": _WithoutTorchao,
    "peft.helpers": _BitsandbytesLater,
}


class _Finder:
    """A meta path finder; runs before a module is first imported, and then steps aside."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _LOADERS[fullname](spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Arrange for these modules to be loaded so, if they are not loaded yet."""
    for name in _LOADERS:
        if name not in sys.modules:
            sys.meta_path.insert(0, _Finder(name))
