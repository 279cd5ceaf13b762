"""Models in OpenVINO answer as they do in ONNX Runtime."""

from __future__ import annotations

import json

import numpy as np
import openvino
import pytest
import torch

from mmhf.cli import main
from mmhf.export.folder import export_model
from mmhf.inference.loading import load_model


@pytest.fixture(scope="module")
def in_openvino(tiny_models, tmp_path_factory):
    """The folders of a classifier of images with texts, and of a captioner."""
    root = tmp_path_factory.mktemp("openvino")
    folders = {family: root / family for family in ("fusion", "captioner")}
    for family, folder in folders.items():
        export_model(tiny_models[family], folder, format="openvino")
    return folders


@pytest.mark.slow
def test_graphs_take_batches_and_texts_of_any_length(in_openvino, tiny_models):
    folder = in_openvino["fusion"]
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    assert settings["agreement"]["largest_difference"]["model"] <= 1e-4
    assert settings["graphs"]["model"]["file"] == "model.xml"
    assert not list(folder.glob("*.onnx*"))
    model, _ = load_model(tiny_models["fusion"], device=torch.device("cpu"))
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch, length in ((1, 1), (3, 9)):
        ids = torch.randint(4, 14, (batch, length))
        inputs = {"pixel_values": torch.randn(batch, 3, 32, 32), "input_ids": ids, "attention_mask": ids.clamp(max=1)}
        with torch.no_grad():
            wanted = model(**inputs).logits
        found = compiled({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
def test_programs_answer_as_those_of_onnx_runtime(in_openvino, exported, program, photos):
    asked = (photos / "wide.jpg", "a red frog")
    here, there = (
        program(each["fusion"])["classify"](*asked) for each in (in_openvino, {"fusion": exported("fusion")})
    )
    assert here["probabilities"] == pytest.approx(there["probabilities"], abs=1e-5)
    here, there = (program(folder)["caption"] for folder in (in_openvino["captioner"], exported("captioner")))
    assert [here(path) for path in sorted(photos.iterdir())] == [there(path) for path in sorted(photos.iterdir())]
    assert "python run_openvino.py" in (in_openvino["fusion"] / "run_openvino.py").read_text(encoding="utf-8")


def test_int8_is_for_onnx(tiny_models, tmp_path, capsys):
    model = str(tiny_models["fusion"])
    assert main(["export", model, "-o", str(tmp_path / "out"), "--format", "openvino", "--int8"]) == 2
    assert "is for --format onnx" in capsys.readouterr().err
