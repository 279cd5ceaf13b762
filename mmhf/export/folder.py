"""An exported model: a folder that appears when all that is in it agrees with the model."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import ProcessorMixin

from mmhf.data.pixels import decode_pixels
from mmhf.errors import InputError
from mmhf.export.formats import FORMATS, Format, compare, write_graph
from mmhf.export.graphs import Graph, ModelGraphs, whole_examples
from mmhf.export.int8 import ValidationRows, measure, quantize, tell
from mmhf.export.settings import (
    TOKENIZER_FILE,
    agreement,
    describe_graphs,
    describe_images,
    describe_origin,
    write_tokenizer,
)
from mmhf.files import whole_folder, write_json, write_text
from mmhf.inference.inputs import TEXT, Example, model_hash, read_rows
from mmhf.inference.loading import load_model
from mmhf.models.family import family_of
from mmhf.models.tower import TowerModel
from mmhf.recipe import ResolvedRecipe
from mmhf.sample_data import read_sample

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.json"
NUM_EXAMPLES = 4
_RUNNERS = Path(__file__).parent / "runners"


def refuse_existing_folder(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        InputError: It does, or it is a file.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; name a folder to make")


def sample_examples() -> list[Example]:
    """A few of the drawings that come with mmhf, with their names as texts."""
    rows = read_sample("validation").slice(0, NUM_EXAMPLES).to_pylist()
    return [Example(decode_pixels(row["image"]["bytes"]), (row["caption"],)) for row in rows]


def export_model(
    model_dir: str | Path,
    output: str | Path,
    *,
    format: str = "onnx",
    input_path: str | Path | None = None,
    name: str | None = None,
    int8_data: ResolvedRecipe | None = None,
) -> dict[str, Any]:
    """Write a model as graphs that run without mmhf, with `settings.json` and, for runtimes on computers, a program.

    Graphs compute in float32, on batches and texts of any length, and are compared with the model on real rows.

    Args:
        model_dir (`str` or `Path`): Run or release folder.
        output (`str` or `Path`): The folder to make.
        format (`str`, defaults to `"onnx"`): `onnx`, `openvino`, `executorch` for phones, which reads one image at a
            time, or `torch` for `torch.export`'s files.
        input_path (`str` or `Path`, *optional*): Table or folder whose first rows are compared; absent: drawings that
            come with mmhf.
        name (`str`, *optional*): How the model is called in `settings.json`; absent: its folder.
        int8_data (`ResolvedRecipe`, *optional*): Give weights 8 bits, calibrated and measured on this recipe's
            validation split; ONNX alone. Absent: float32.

    Returns:
        `dict`: What `settings.json` holds.

    Raises:
        InputError: The model or the input cannot be used, the output is there, the model cannot be traced, or a graph
            disagrees with it by more than 1e-4.
    """
    refuse_existing_folder(Path(output))
    model, processor = load_model(model_dir, needs="graphs", device=torch.device("cpu"))
    if isinstance(model, TowerModel):
        for tower in model.encoders():
            if (bits := model.bits_of(tower)) is not None:
                raise InputError(
                    f"{model_dir}: its {tower} model has weights of {bits} bits, which graphs do not hold; export a "
                    f"model that was trained without model.{tower}.quantization, with --int8 for a small one"
                )
        if model.config.lora is not None:
            model.merge_lora()
    images = describe_images(processor)
    family = family_of(model)
    family_graphs: ModelGraphs = family.load("graphs")(model.float(), processor)
    validation = None if int8_data is None else ValidationRows(int8_data, family_graphs)
    examples, of = _examples(family_graphs, input_path, model_dir, captions=family.embedder is not None)
    file_format = FORMATS[format]
    graphs = [file_format.fit(each) for each in family_graphs.graphs(examples)]
    with whole_folder(Path(output)) as folder:
        paths = {graph.name: folder / (graph.name + file_format.suffix) for graph in graphs}
        differences = {graph.name: _write_and_compare(graph, paths[graph.name], file_format) for graph in graphs}
        settings = {
            **describe_origin(name or str(model_dir), str(model.config.model_type), model_hash(Path(model_dir))),
            "format": format,
            "graphs": describe_graphs(graphs, file_format.suffix),
            "agreement": agreement(differences, rows=len(examples), of=of),
            "image": images,
            **family_graphs.after(),
        }
        if validation is not None:
            written = [(graph, paths[graph.name]) for graph in graphs]
            settings["quality"] = _quantize(family_graphs, written, validation)
        if isinstance(processor, ProcessorMixin):
            settings["text"] = write_tokenizer(processor, folder / TOKENIZER_FILE)
        write_json(folder / SETTINGS_FILE, settings)
        if file_format.runner_file is not None:
            _copy_program(family_graphs.runner, folder / file_format.runner_file, file_format.runtime)
    return settings


def _examples(
    graphs: ModelGraphs, input_path: str | Path | None, model_dir: str | Path, *, captions: bool
) -> tuple[list[Example], str]:
    """The rows that are compared, and what they are called."""
    columns = graphs.columns
    if input_path is None:
        usual = None if columns is None else columns.usual_row()
        drawings = [replace(each, columns=usual) for each in sample_examples()]
        return whole_examples(graphs, drawings), "drawings that come with mmhf"
    rows = read_rows(
        input_path,
        model_dir=model_dir,
        limit=NUM_EXAMPLES,
        reads={TEXT: graphs.reads_text},
        captions=captions,
        value_columns=() if columns is None else columns.names,
    )
    return whole_examples(graphs, [rows.example(row) for row in range(len(rows))]), str(input_path)


def _copy_program(runner: str, path: Path, runtime: str) -> None:
    """Put the program that runs these graphs beside them, under the name that its own words call it."""
    program = (_RUNNERS / f"{runner}.py").read_text(encoding="utf-8")
    write_text(path, program.replace("run_onnx.py", path.name, 1))
    shutil.copyfile(_RUNNERS / runtime, path.with_name("runtime.py"))
    shutil.copyfile(_RUNNERS / "inputs.py", path.with_name("inputs.py"))


def _write_and_compare(graph: Graph, path: Path, format: Format) -> float:
    """Write a graph, run what was written, and return its largest difference from the model."""
    write_graph(graph, path, format)
    difference = compare(graph, format.load(path, graph.outputs))
    logger.info("%s: agrees with the model to %.1g", path.name, difference)
    return difference


def _quantize(
    family_graphs: ModelGraphs, written: Sequence[tuple[Graph, Path]], rows: ValidationRows
) -> dict[str, Any]:
    """Put graphs with weights of 8 bits in the place of these; returns what that costs."""
    smaller = []
    for graph, path in written:
        target = path.with_name(f"{path.stem}.int8.onnx")
        how = quantize(graph, path, target, rows.calibrating)
        smaller.append((graph, target))
        logger.info("%s: %s int8, %.2f of its size", path.name, how, target.stat().st_size / path.stat().st_size)
    candidates = [
        [(graph, FORMATS["onnx"].load(path, graph.outputs)) for graph, path in each] for each in (written, smaller)
    ]
    before, after = measure(family_graphs, rows, candidates)
    for (_, path), (_, target) in zip(written, smaller, strict=True):
        target.replace(path)
    return tell(family_graphs, before, after, rows.num_rows)
