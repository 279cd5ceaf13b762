"""Let timm load without wandb.

`timm.utils.summary` imports wandb where it is installed. That takes a second, and is for timm's own training script
alone. Trainer loads wandb by itself when a run is tracked. Seen with timm 1.0.31; retire this module when
timm imports wandb where it uses it.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import cast

_MODULE = "timm.utils.summary"


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


class _TimmFinder:
    """A meta path finder; runs before that module is first imported, and then steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _WithoutWandb(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Arrange for timm to be loaded without wandb, if it is not loaded yet."""
    if _MODULE not in sys.modules:
        sys.meta_path.insert(0, _TimmFinder())
