"""Models in OpenVINO answer as they do in ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmhf.cli import main


@pytest.mark.slow
def test_models_answer_as_in_onnx_runtime(tiny_models, exported, program, photos, tmp_path):
    photo, text = str(photos / "wide.jpg"), "a red frog"
    models = (str(tiny_models[family]) for family in ("fusion", "captioner"))
    command = [sys.executable, str(Path(__file__).with_name("in_openvino.py")), str(tmp_path), *models, photo, text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    wanted = program(exported("fusion"))["classify"](photo, text)
    assert answers["classify"]["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)
    assert answers["caption"] == program(exported("captioner"))["caption"](photo)
    folder = tmp_path / "fusion"
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    assert settings["agreement"]["largest_difference"]["model"] <= 1e-4
    assert settings["graphs"]["model"]["file"] == "model.xml"
    assert not list(folder.glob("*.onnx*"))
    assert "python run_openvino.py" in (folder / "run_openvino.py").read_text(encoding="utf-8")


def test_int8_is_for_onnx(tiny_models, tmp_path, capsys):
    model = str(tiny_models["fusion"])
    assert main(["export", model, "-o", str(tmp_path / "out"), "--format", "openvino", "--int8"]) == 2
    assert "is for --format onnx" in capsys.readouterr().err
