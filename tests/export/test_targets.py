"""What is exported answers as the model does, whatever it was trained on."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mmhf.export import folder as export_folder
from mmhf.export.folder import export_model
from mmhf.inference import JobSettings, predict_table
from mmhf.models.image_classifier import BackboneForImageClassification
from mmhf.models.targets import MULTI_LABEL, ORDINAL, REGRESSION, SINGLE_LABEL

NAMES = {"id2label": {0: "low", 1: "some", 2: "high"}, "label2id": {"low": 0, "some": 1, "high": 2}}


@pytest.mark.slow
def test_ordered_classes_are_answered_as_predict_does(
    tiny_models: dict[str, Path], photos: Path, program: Any, tmp_path: Path
) -> None:
    source, folder = tiny_models["image classifier"], tmp_path / "model"
    tiny = BackboneForImageClassification.from_pretrained(source)
    torch.manual_seed(0)
    config = type(tiny.config)(**{**tiny.config.to_dict(), "ordinal": True, **NAMES})
    BackboneForImageClassification(config, vision=tiny.vision).save_pretrained(folder)
    shutil.copy(source / "preprocessor_config.json", folder)
    export_model(folder, tmp_path / "out")
    output = tmp_path / "rows.parquet"
    predict_table(folder, photos, output, JobSettings(device="cpu"))
    classify = program(tmp_path / "out")["classify"]
    for row in pd.read_parquet(output).to_dict("records"):
        answer = classify(photos / Path(row["file_name"]).name)
        assert answer["label"] == row["label"]
        for name, chance in answer["probabilities"].items():
            assert chance == pytest.approx(row[f"probability_{name}"], abs=2e-2)


@pytest.mark.parametrize(
    ("target", "changes", "expected"),
    [
        (SINGLE_LABEL, {}, {"label": "high", "confidence": 0.4}),
        (SINGLE_LABEL, {"abstain_below": 0.5}, {"label": "high", "abstained": True}),
        (ORDINAL, {}, {"label": "some", "confidence": 0.3}),
        (MULTI_LABEL, {}, {"labels": []}),
        (MULTI_LABEL, {"thresholds": [0.2, 0.9, 0.1]}, {"labels": ["high", "low"]}),
        (REGRESSION, {}, {"numbers": {"low": np.log(0.3), "some": np.log(0.3), "high": np.log(0.4)}}),
    ],
)
def test_a_program_answers_by_what_was_learnt(
    target: Any, changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(export_folder.__file__).with_name("runners") / "classify.py", tmp_path)
    settings = {"learnt": target.name, "labels": ["low", "some", "high"], "thresholds": None, "abstain_below": None}
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "image": {}, **changes}))
    logits = np.log(np.array([[0.3, 0.3, 0.4]]))
    graph = SimpleNamespace(run=lambda arrays: (logits,))
    monkeypatch.setitem(sys.modules, "runtime", SimpleNamespace(Graph=lambda *given: graph))
    monkeypatch.setitem(
        sys.modules, "inputs", SimpleNamespace(pixel_values=lambda *given: None, tokens=None, column_values=None)
    )
    answer = runpy.run_path(str(tmp_path / "classify.py"))["classify"]("photo.jpg")
    for name, value in expected.items():
        assert answer[name] == (pytest.approx(value) if isinstance(value, float) else value)
