"""Graphs in OpenVINO, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import openvino


class Graph:
    """A graph of this folder; `shapes` has its inputs, with None for what may have any length."""

    def __init__(self, folder: str, name: str) -> None:
        path = os.path.join(folder, f"{name}.xml")
        # Not in the bfloat16 that some processors would choose.
        self._model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.shapes = {
            each.any_name: [None if length.is_dynamic else length.get_length() for length in each.partial_shape]
            for each in self._model.inputs
        }

    def run(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Its outputs, from those of the arrays that it reads."""
        found = self._model({name: arrays[name] for name in self.shapes})
        return [np.array(found[each]) for each in self._model.outputs]
