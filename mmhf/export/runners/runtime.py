"""Graphs in ONNX Runtime, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import onnxruntime


class Graph:
    """A graph of this folder; `shapes` has its inputs, with None for what may have any length."""

    def __init__(self, folder: str, name: str) -> None:
        path = os.path.join(folder, f"{name}.onnx")
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.shapes = {
            each.name: [length if isinstance(length, int) else None for length in each.shape]
            for each in self._session.get_inputs()
        }

    def run(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Its outputs, from those of the arrays that it reads."""
        return list(self._session.run(None, {name: arrays[name] for name in self.shapes}))
