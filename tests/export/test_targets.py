"""What is exported answers as the model does, whatever it was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mmhf.export.folder import export_model
from mmhf.inference import JobSettings, predict_table
from mmhf.models.image_classifier import BackboneForImageClassification

ROUNDING = 2e-2
NAMES = {"id2label": {0: "low", 1: "some", 2: "high"}, "label2id": {"low": 0, "some": 1, "high": 2}}
KINDS = {
    "labels": {"problem_type": "multi_label_classification", "thresholds": [0.4, 0.5, 0.6], **NAMES},
    "numbers": {"problem_type": "regression", "target_mean": [40.0, 0.0, 1.0], "target_std": [2.0, 1.0, 9.0], **NAMES},
    "ordered class": {"ordinal": True, **NAMES},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_it_answers_as_predict(
    kind: str, tiny_models: dict[str, Path], photos: Path, program: Any, tmp_path: Path
) -> None:
    source, folder = tiny_models["image classifier"], tmp_path / "model"
    tiny = BackboneForImageClassification.from_pretrained(source)
    torch.manual_seed(0)
    config = type(tiny.config)(**{**tiny.config.to_dict(), **KINDS[kind]})
    model = BackboneForImageClassification(config, vision=tiny.vision)
    model.save_pretrained(folder)
    shutil.copy(source / "preprocessor_config.json", folder)
    export_model(folder, tmp_path / "out")
    output = tmp_path / "rows.parquet"
    predict_table(folder, photos, output, JobSettings(device="cpu"))
    classify = program(tmp_path / "out")["classify"]
    for row in pd.read_parquet(output).to_dict("records"):
        answer = classify(photos / Path(row["file_name"]).name)
        if kind == "numbers":
            names = NAMES["label2id"]
            expected = {name: pytest.approx(row[f"predicted_{name}"], abs=ROUNDING) for name in names}
            assert answer == {"numbers": expected}
            continue
        for name, chance in answer["probabilities"].items():
            assert chance == pytest.approx(row[f"probability_{name}"], abs=ROUNDING)
        column = "labels" if kind == "labels" else "label"
        assert answer[column] == (list(row["labels"]) if kind == "labels" else row["label"])
