"""Weights of 8 bits, and what is said of their cost."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mmhf.cli import main
from mmhf.export.folder import export_model
from mmhf.export.formats import FORMATS, write_graph
from mmhf.export.graphs import CaptionerGraphs, Case, Graph, GraphModule
from mmhf.export.int8 import ValidationRows, quantize
from mmhf.inference.loading import load_model
from mmhf.recipe import load_recipe


def kinds(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.slow
def test_the_cost_is_measured_on_other_rows_than_those_that_calibrate(tiny_models, tiny_recipe, exported, tmp_path):
    recipe = load_recipe(tiny_recipe())
    folder = tmp_path / "int8"
    settings = export_model(tiny_models["fusion"], folder, int8_data=recipe)
    quality = json.loads((folder / "settings.json").read_text())["quality"]
    assert quality == settings["quality"]
    assert quality["rows"] == 8 and quality["split"] == "validation"  # 16 rows, of which 8 calibrate
    assert quality["float32"].keys() == quality["int8"].keys() > {"accuracy", "f1_macro"}
    assert kinds(folder / "model.onnx")["QuantizeLinear"] > 0
    assert kinds(exported("fusion") / "model.onnx")["QuantizeLinear"] == 0
    assert not list(folder.glob("*int8*")) and not list(folder.glob("*prepared*"))


@pytest.mark.slow
def test_a_captioners_loss_per_token_is_measured(tiny_models, tmp_path):
    recipe = load_recipe(
        "quickstart/captioner",
        ["model.neighbours=null", "data.image_size=32", "data.max_length=6", "data.limit=200"],
    )
    model, processor = load_model(tiny_models["captioner"], needs="graphs", device=torch.device("cpu"))
    settings = export_model(tiny_models["captioner"], tmp_path / "int8", int8_data=recipe)
    rows = ValidationRows(recipe, CaptionerGraphs(model, processor))
    total, num_tokens = 0.0, 0
    for batch in rows.measuring():
        given = {name: torch.from_numpy(batch[name]) for name in ("pixel_values", "input_ids", "labels")}
        known = int((given["labels"] != -100).sum())
        with torch.no_grad():
            total, num_tokens = total + float(model(**given).loss) * known, num_tokens + known
    assert settings["quality"]["float32"] == {"loss": pytest.approx(total / num_tokens, abs=1e-5)}
    assert settings["quality"]["int8"]["loss"] == pytest.approx(total / num_tokens, abs=0.1)
    assert kinds(tmp_path / "int8" / "language.onnx")["MatMulInteger"] > 0


@pytest.mark.slow
def test_convolutions_are_calibrated(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(8, 4)).eval()
    module = GraphModule(network, lambda model, given: (model(given["pixel_values"]),), ["pixel_values"])
    pixels = torch.randn(6, 3, 12, 12)
    with torch.no_grad():
        wanted = network(pixels)
    lengths = {"pixel_values": {0: "batch"}, "logits": {0: "batch"}}
    case = Case({"pixel_values": pixels}, {"logits": wanted})
    graph = Graph("model", module, case.inputs, ("logits",), lengths, [case])
    path, target = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    write_graph(graph, path, FORMATS["onnx"])
    assert quantize(graph, path, target, [{"pixel_values": pixels.numpy(), "labels": np.zeros(6)}]) == "static"
    assert kinds(target)["QuantizeLinear"] >= 3
    found = FORMATS["onnx"].load(target, ["logits"])({"pixel_values": pixels.numpy()})["logits"]
    np.testing.assert_allclose(found, wanted, atol=0.1 * float(wanted.abs().max()))


def test_where_int8_has_no_meaning_it_is_refused(tiny_models, tmp_path, capsys):
    captioner = tiny_models["captioner"]
    assert main(["export", str(captioner), "-o", str(tmp_path / "out"), "--format", "torch", "--int8"]) == 2
    assert main(["export", str(captioner), "data.path=here", "-o", str(tmp_path / "out")]) == 2
    assert "which is not asked for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
