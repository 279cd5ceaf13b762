"""Let a CUDA-linked torchvision work beside a CPU-only torch.

PyPI's torchvision wheel is linked against CUDA. Beside a CPU build of torch its extension cannot be loaded, the
schemas of `torchvision::nms` and `torchvision::qnms` are missing, and `import torchvision` fails, and with it timm and
`transformers.Trainer`. mmhf needs torchvision's transforms only, so declaring the two schemas is enough.
Seen with torch 2.13 and torchvision 0.28; retire this module when PyPI's torchvision imports beside a CPU torch.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A library is unregistered when it is collected, so it is kept for the life of the process.
_kept_alive: list[Any] = []


def _declare_missing_schemas(package_dir: Path) -> None:
    import torch  # here, so that `import mmhf` stays free of torch

    try:
        for extension in package_dir.glob("_C*.so"):
            torch.ops.load_library(str(extension))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        _kept_alive.append(library)


class _TorchvisionFinder:
    """A meta path finder; runs before the first `import torchvision` and then steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None:
            _declare_missing_schemas(Path(spec.origin).parent)
        return spec


def install() -> None:
    """Arrange for the missing schemas to be declared when torchvision is first imported."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _TorchvisionFinder())
