"""Columns of a table in `pipeline()` and `mmhf predict`."""

from __future__ import annotations

import pandas as pd
import pytest

from mmhf import pipeline
from mmhf.errors import InputError
from mmhf.inference import JobSettings, predict_table

SEEN = {"text": "a frog", "columns": {"age": 61, "site": "face"}}


@pytest.fixture
def model(tiny_model):
    return tiny_model("fusion with columns")


@pytest.fixture
def classify(model):
    return pipeline("image-text-classification", model=model)


def test_a_pipeline_takes_columns_as_dicts_and_as_a_keyword(classify, picture):
    image = str(picture)
    one = classify({"image": image, **SEEN})
    assert classify(image=image, **SEEN) == one
    assert classify(image=[image], text=["a frog"], columns=[SEEN["columns"]]) == [one]
    other = classify({"image": image, **SEEN, "columns": {"age": 5, "site": "back"}})
    assert other != one


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": "a frog"}, 'needs "columns", a dict with values of age, site'),
        ({**SEEN, "columns": {"agee": 1}}, "columns.agee: the model reads no such column; did you mean age"),
        ({**SEEN, "columns": {"age": "old"}}, "columns.age: 'old' is no number"),
        ({**SEEN, "columns": 61}, "columns: expected a dict of values by column, got 61"),
    ],
)
def test_a_pipeline_names_what_it_cannot_read(given, message, classify, picture):
    with pytest.raises(InputError, match=message):
        classify({"image": str(picture), **given})


def test_a_pipeline_of_a_model_without_columns_refuses_them(model_dir, picture):
    classify = pipeline("image-text-classification", model=model_dir)
    with pytest.raises(InputError, match="columns: the model reads none"):
        classify({"image": str(picture), **SEEN})
    with pytest.raises(InputError, match="1 images for 2 rows of columns"):
        classify(image=[str(picture)], text=["a"], columns=[{}, {}])


def test_a_row_whose_number_is_a_text_keeps_its_place_and_says_so(model, picture, tmp_path):
    table = {"image": [picture.name] * 3, "text": ["a frog"] * 3, "age": ["61", "old", None], "site": ["face"] * 3}
    pd.DataFrame(table).to_csv(picture.parent / "in.csv", index=False)
    predict_table(model, picture.parent / "in.csv", tmp_path / "out.csv", JobSettings(device="cpu"))
    predicted = pd.read_csv(tmp_path / "out.csv")
    assert predicted["label"].isna().tolist() == [False, True, False]
    assert predicted["error"].tolist()[1] == "columns.age: 'old' is no number"


def test_a_table_without_a_column_that_the_model_reads_is_named(model, picture, tmp_path):
    pd.DataFrame({"image": [picture.name], "text": ["a"], "ages": [3], "site": ["face"]}).to_csv(
        picture.parent / "in.csv", index=False
    )
    with pytest.raises(InputError, match="no column 'age'.*did you mean.*ages"):
        predict_table(model, picture.parent / "in.csv", tmp_path / "out.csv", JobSettings(device="cpu"))
    settings = JobSettings(device="cpu", columns={"age": "ages"})
    assert predict_table(model, picture.parent / "in.csv", tmp_path / "out.csv", settings).unpredicted == 0
    with pytest.raises(InputError, match="columns.aeg: unknown, name the columns of image, text, age and site"):
        predict_table(
            model, picture.parent / "in.csv", tmp_path / "2.csv", JobSettings(columns={"aeg": "ages"}, device="cpu")
        )
