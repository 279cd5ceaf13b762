"""Exported models take a table's raw values, and answer as mmhf does."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_families import save_tiny_family
from transformers import GenerationConfig

import mmhf
from mmhf.errors import InputError
from mmhf.export import folder as export_folder
from mmhf.export.folder import export_model
from mmhf.models.fusion.column_features import CategoryColumn, ColumnFeatures, NumberColumn

INPUTS = runpy.run_path(str(Path(export_folder.__file__).with_name("runners") / "inputs.py"))
FEATURES = ColumnFeatures(
    [NumberColumn("age", 40.0, 12.5, True), NumberColumn("size", -1.0, 1.0, False)],
    [CategoryColumn("site", ("back", "1", "true"), True), CategoryColumn("sex", ("f", "m"), False)],
)
TEXTS = st.sampled_from(["back", " back ", "1", "true", "f", "", " ", "nan", "inf", "1_0", "3.5", "1e3", "x"])
VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(width=32) | TEXTS
ROWS = st.dictionaries(st.sampled_from(["age", "size", "site", "sex"]), VALUES)


@given(ROWS)
@settings(deadline=None)
def test_columns_are_read_as_by_the_model(row: dict[str, Any]) -> None:
    if (problem := FEATURES.find_problem(row)) is not None:
        with pytest.raises(ValueError, match="is no number"):
            INPUTS["column_values"](row, FEATURES.to_dict())
        assert "is no number" in problem
        return
    np.testing.assert_allclose(INPUTS["column_values"](row, FEATURES.to_dict()), FEATURES.encode([row]), rtol=1e-6)


def test_a_column_that_is_not_read_is_named() -> None:
    with pytest.raises(ValueError, match="agee: the model reads no such column; it reads age, size, site, sex"):
        INPUTS["column_values"]({"agee": 3}, FEATURES.to_dict())
    assert INPUTS["value_as_text"](math.nan) is None


@pytest.mark.slow
def test_a_classifier_with_columns_answers_as_its_pipeline(
    photos: Path, run_alone: Callable[..., str], program: Any, tmp_path: Path
) -> None:
    folder = save_tiny_family("fusion with columns", tmp_path / "model")
    told = export_model(folder, tmp_path / "out")
    assert told["columns"]["numbers"][0]["name"] == "age"
    classify, ours = program(tmp_path / "out")["classify"], mmhf.pipeline("image-text-classification", model=folder)
    answers = []
    for columns in ({"age": 61, "site": "face"}, {"age": 5.0, "site": "elsewhere"}, {}):
        found = classify(photos / "wide.jpg", "a frog", columns)["probabilities"]
        given = ours({"image": str(photos / "wide.jpg"), "text": "a frog", "columns": columns})
        assert found == pytest.approx({each["label"]: each["score"] for each in given}, abs=1e-2)
        answers.append(tuple(found.values()))
    assert len(set(answers)) == 3, "each value counts"
    assert '"label"' in run_alone(tmp_path / "out", photos / "wide.jpg", "a frog", '{"age": 61}')
    with pytest.raises(ValueError, match="agee: the model reads no such column"):
        classify(photos / "wide.jpg", "a frog", {"agee": 1})


@pytest.mark.slow
def test_a_captioner_whose_prompt_names_columns_writes_as_its_pipeline(photos: Path, program: Any, tmp_path: Path):
    folder = save_tiny_family("captioner with prompt", tmp_path / "model")
    GenerationConfig(max_new_tokens=6, eos_token_id=3, pad_token_id=0).save_pretrained(folder)
    export_model(folder, tmp_path / "out")
    caption, ours = program(tmp_path / "out")["caption"], mmhf.pipeline("image-captioning", model=folder)
    written = []
    for columns in ({"kind": "the frog"}, {"kind": "a lamp in the rain"}, {}):
        found = caption(photos / "wide.jpg", columns)
        assert found == ours({"image": str(photos / "wide.jpg"), "columns": columns})[0]["caption"]
        written.append(found)
    assert written[0] != written[1], "the prompt counts"
    with pytest.raises(ValueError, match="the prompt names no such column; it has kind"):
        caption(photos / "wide.jpg", {"sort": "a"})


def test_rows_whose_columns_cannot_be_read_are_not_compared(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "in.csv").write_text(
        "image,text,age,site\n" + "".join(f"{photos / 'wide.jpg'},a frog,old,back\n" for _ in range(3))
    )
    folder = save_tiny_family("fusion with columns", tmp_path / "model")
    with pytest.raises(InputError, match="columns that the model can read"):
        export_model(folder, tmp_path / "out", format="torch", input_path=tmp_path / "in.csv")
