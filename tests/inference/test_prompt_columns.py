"""Captioners with and without columns in their prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from mmhf import pipeline
from mmhf.errors import InputError
from mmhf.inference import JobSettings, predict_table
from mmhf.inference.loading import load_model
from mmhf.inference.predictors import CaptionPredictor


def test_a_captioner_without_columns_takes_none(tiny_model: Callable[[str], Path], picture: Path) -> None:
    caption = pipeline("image-captioning", model=tiny_model("captioner"))
    with pytest.raises(InputError, match="columns: the model's prompt names none; leave them away"):
        caption({"image": str(picture), "columns": {"kind": "a"}})


def test_what_stands_for_a_missing_value_is_noted(
    tiny_model: Callable[[str], Path], picture: Path, tmp_path: Path
) -> None:
    table = {"image": [picture.name] * 3, "kind": ["the frog", None, "a lamp"]}
    pd.DataFrame(table).to_csv(picture.parent / "kinds.csv", index=False)
    folder = tiny_model("captioner with prompt")
    predict_table(folder, picture.parent / "kinds.csv", tmp_path / "out.csv", JobSettings(device="cpu"))
    predicted = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert predicted["error"].tolist() == ["", "kind: is missing; the prompt has 'a lamp' for it", ""]
    assert predicted["caption"][1] == predicted["caption"][2] != predicted["caption"][0]
    prompted = load_model(tiny_model("captioner with prompt"), device=torch.device("cpu"))
    predictor = CaptionPredictor(*prompted)  # type: ignore[arg-type]
    assert predictor.reads == ("image", "columns")
