"""The files that graphs are written to, and how they are run again to be compared with the model."""

from __future__ import annotations

import contextlib
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from mmhf.errors import InputError
from mmhf.export.graphs import Graph, of_one_row

TOLERANCE = 1e-4
_LARGEST_FILE = 1 << 30
"""Bytes of weights that a file holds itself; protobuf ends at 2 GiB."""
_TALKATIVE = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")

Runner = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


class Format(ABC):
    """A kind of file for graphs."""

    suffix: ClassVar[str]
    runner_file: ClassVar[str | None] = None
    """What the program that runs such files is called; absent: there is none."""
    runtime: ClassVar[str] = ""
    """The program's module in `mmhf/export/runners/` that opens files of this kind."""

    def fit(self, graph: Graph) -> Graph:
        """The graph as this format can hold it.

        Raises:
            InputError: It cannot.
        """
        return graph

    @abstractmethod
    def write(self, program: ExportedProgram, graph: Graph, path: Path) -> None:
        """Write the file."""

    @abstractmethod
    def load(self, path: Path, outputs: Sequence[str]) -> Runner:
        """A file as a function from named inputs to named outputs."""


class Onnx(Format):
    """ONNX, for ONNX Runtime."""

    suffix = ".onnx"
    runner_file = "run_onnx.py"
    runtime = "runtime.py"

    def write(self, program: ExportedProgram, graph: Graph, path: Path) -> None:
        torch.onnx.export(
            program,
            f=path,
            input_names=list(graph.example),
            output_names=list(graph.outputs),
            external_data=sum(each.nbytes for each in program.state_dict.values()) > _LARGEST_FILE,
            verbose=False,
        )

    def load(self, path: Path, outputs: Sequence[str]) -> Runner:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return dict(zip(outputs, session.run(list(outputs), dict(inputs)), strict=True))

        return run


class OpenVino(Format):
    """OpenVINO's own files, made from ONNX."""

    suffix = ".xml"
    runner_file = "run_openvino.py"
    runtime = "runtime_openvino.py"

    def write(self, program: ExportedProgram, graph: Graph, path: Path) -> None:
        import openvino

        between = path.with_suffix(Onnx.suffix)
        Onnx().write(program, graph, between)
        openvino.save_model(openvino.convert_model(between), path, compress_to_fp16=False)
        for each in path.parent.glob(f"{between.name}*"):  # and its weights, where they are a file of their own
            each.unlink()

    def load(self, path: Path, outputs: Sequence[str]) -> Runner:
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32"}  # not the bfloat16 that some processors would choose
        model = openvino.Core().compile_model(path, "CPU", settings)

        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            found = model(dict(inputs))
            return {name: np.array(found[name]) for name in outputs}

        return run


class ExecuTorch(Format):
    """ExecuTorch's programs for phones, which read one image at a time."""

    suffix = ".pte"

    def fit(self, graph: Graph) -> Graph:
        return of_one_row(graph)

    def write(self, program: ExportedProgram, graph: Graph, path: Path) -> None:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)

    def load(self, path: Path, outputs: Sequence[str]) -> Runner:
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        method = program.load_method("forward")

        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            found = method.execute([torch.from_numpy(array) for array in inputs.values()])
            return {name: tensor.numpy() for name, tensor in zip(outputs, found, strict=True)}

        return run


class Torch(Format):
    """`torch.export`'s files."""

    suffix = ".pt2"

    def write(self, program: ExportedProgram, graph: Graph, path: Path) -> None:
        torch.export.save(program, path)

    def load(self, path: Path, outputs: Sequence[str]) -> Runner:
        module = torch.export.load(path).module()

        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            with torch.no_grad():
                found = module(*(torch.from_numpy(array) for array in inputs.values()))
            return {name: tensor.numpy() for name, tensor in zip(outputs, found, strict=True)}

        return run


FORMATS: Mapping[str, Format] = {
    "onnx": Onnx(),
    "openvino": OpenVino(),
    "executorch": ExecuTorch(),
    "torch": Torch(),
}
"""By the names that `mmhf export --format` takes."""


def write_graph(graph: Graph, path: Path, format: Format) -> None:
    """Trace a graph, and write it.

    Raises:
        InputError: The model does something that cannot be traced.
    """
    example = tuple(graph.example.values())
    lengths = tuple(dict.fromkeys(graph.lengths[name], Dim.DYNAMIC) for name in graph.example)
    with _quiet(), torch.no_grad():
        try:
            # Not strict: Python runs as it is, and what it does to tensors is written down.
            program = torch.export.export(
                graph.module.eval(), example, dynamic_shapes={"tensors": lengths}, strict=False
            )
            format.write(program, graph, path)
        except RuntimeError as error:  # what torch.export and torch.onnx raise is derived from it
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"mmhf export: {graph.name} cannot be written as a graph ({reason})") from error


def compare(graph: Graph, run: Runner) -> float:
    """The largest difference between a file and the model, as a part of the largest value where that is above 1.

    Raises:
        InputError: It is above 1e-4.
    """
    worst = 0.0
    for case in graph.cases:
        found = run({name: np.ascontiguousarray(tensor.numpy()) for name, tensor in case.inputs.items()})
        for name, tensor in case.expected.items():
            wanted = tensor.numpy()
            difference = float(np.abs(found[name] - wanted).max() / max(1.0, float(np.abs(wanted).max())))
            worst = difference if not difference <= worst else worst  # NaN, too
    if not worst <= TOLERANCE:
        raise InputError(
            f"mmhf export: {graph.name} disagrees with the model by {worst:.2g}, more than {TOLERANCE:g}; nothing is "
            "written. Please report it with the model's config.json"
        )
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch says of its own work out of the way."""
    levels = {name: logging.getLogger(name).level for name in _TALKATIVE}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
