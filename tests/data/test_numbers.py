"""Numbers and ordered classes: how tables write them, and what is refused."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pandas as pd
import pytest

from mmhf.data.loading import load_data
from mmhf.errors import InputError

AGES = [float(number) / 4 for number in range(40)]
GRADES = ["mild", "none", "severe", "mild"] * 10


@pytest.fixture
def folder(tmp_path, encode):
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(encode(kind="PNG"))
    return tmp_path


@pytest.fixture
def load(section, folder):
    """Write a table with these columns beside the images, and load it."""

    def load(columns, *, name="t.csv", model=None, splits=None, **values):
        frame = pd.DataFrame({"file": [f"{number}.png" for number in range(40)], **columns})
        path = folder / name
        if path.suffix == ".csv":
            frame.to_csv(path, index=False)
        elif path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_json(path, orient="records", lines=True)
        values = {"split": {"validation": 0.0, "test": 0.0}, **values}
        label = "age" if "age" in columns else "grade"
        given = section(source="table", path=str(path), columns={"image": "file", "label": label}, **values)
        return load_data(given, task="image-classification", label_names=model, splits=splits)

    return load


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize("write", [float, str, lambda age: f"{age:.3e}"])
def test_numbers_are_read_exactly_and_in_any_writing(load, name, write):
    data = load({"age": [write(age) for age in AGES]}, name=name, regression={})
    rows = data.splits["train"]
    assert data.label_names == ["age"]
    assert rows.features["numbers"] == datasets.List(datasets.Value("float64"), length=1)
    assert np.asarray(rows["numbers"])[:, 0].tolist() == AGES
    assert not data.bad_examples and "label" not in rows.column_names


def test_several_columns(load):
    columns = {"age": AGES, "weight": [100 - age for age in AGES], "note": ["x"] * 40}
    data = load(columns, regression={"columns": ["weight", "age"]})
    assert data.label_names == ["weight", "age"]
    np.testing.assert_array_equal(data.splits["train"]["numbers"], np.stack([columns["weight"], AGES], axis=1))
    turned = load(columns, regression={"columns": ["weight", "age"]}, model=["age", "weight"])
    np.testing.assert_array_equal(turned.splits["train"]["numbers"], np.stack([AGES, columns["weight"]], axis=1))
    with pytest.raises(InputError, match="the model's numbers are age, height, the data's are weight, age"):
        load(columns, regression={"columns": ["weight", "age"]}, model=["age", "height"])
    with pytest.raises(InputError, match="weigth"):
        load(columns, regression={"columns": ["weigth"]})
    assert load(columns, regression={}, model=["years"]).label_names == ["years"], "a single one may be renamed"


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("", "age: the number is missing"),
        (math.nan, "age: the number is missing"),
        ("inf", "age is 'inf', and not a finite number"),
        ("-Infinity", "age is '-Infinity', and not a finite number"),
        ("forty", "age is 'forty', and not a number"),
        ("12,5", "age is '12,5', and not a number; write it as 12.5"),
        ("12 kg", "age is '12 kg', and not a number"),
        ("1_000", "age is '1_000', and not a number"),
        ("True", "age is 'True', and not a number"),
        ("1e39", "age is '1e39', larger than a model can compute with"),
    ],
)
def test_what_is_no_number_is_named_and_skipped_or_raised(load, cell, says):
    cells = [cell if number == 4 else age for number, age in enumerate(AGES)]
    with pytest.raises(InputError, match=f"row 5: {says}.*data.on_bad_row=skip goes on without it"):
        load({"age": cells}, regression={})
    skipped = load({"age": cells}, regression={}, on_bad_row="skip")
    assert [bad.row for bad in skipped.bad_examples] == [5] and says in skipped.bad_examples[0].reason
    assert len(skipped.splits["train"]) == 39


def test_infinite_floats_of_a_parquet_file(load):
    cells = [np.inf if number == 2 else age for number, age in enumerate(AGES)]
    with pytest.raises(InputError, match="row 3: age is 'inf', and not a finite number"):
        load({"age": cells}, name="t.parquet", regression={})


def test_placeholders_are_missing_numbers(load):
    cells = ["n/a" if number == 4 else str(age) for number, age in enumerate(AGES)]
    with pytest.raises(InputError, match="row 5: age: the number is missing"):
        load({"age": cells}, regression={}, missing=["n/a"])


def test_numbers_count_in_the_fingerprint(load):
    other = load({"age": [*AGES[:-1], 3.0]}, regression={}).fingerprint()
    assert load({"age": AGES}, regression={}).fingerprint() != other


def test_classes_in_an_order(load):
    data = load({"grade": GRADES}, ordinal={"order": ["none", "mild", "severe"]})
    assert data.label_names == ["none", "mild", "severe"]
    assert data.splits["train"]["label"][:4] == [1, 0, 2, 1]
    grades = [str(number % 3) + ".0" for number in range(40)]
    numbered = load({"grade": grades}, ordinal={"order": [2, 1, 0]})
    assert numbered.label_names == ["2", "1", "0"] and numbered.splits["train"]["label"][:3] == [2, 1, 0]
    named = {"none": "no", "mild": "some", "severe": "some"}
    merged = load({"grade": GRADES}, ordinal={"order": ["some", "no"]}, labels=named)
    assert merged.label_names == ["some", "no"] and merged.splits["train"]["label"][:4] == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (["none", "mild"], "row 3: the label 'severe' is not in data.ordinal.order"),
        (["none", "milt", "severe"], "no row has the label 'milt' of data.ordinal.order; did you mean mild"),
        (["none", "mild", "severe", "fatal"], "no row has the label 'fatal' of data.ordinal.order"),
    ],
)
def test_an_order_that_does_not_fit_is_named(load, order, says):
    with pytest.raises(InputError, match=says):
        load({"grade": GRADES}, ordinal={"order": order})


def test_an_order_beside_names_of_labels(load):
    named = {"none": "no", "mild": "some", "severe": "much"}
    with pytest.raises(InputError, match="the label 'much' is not in data.ordinal.order"):
        load({"grade": GRADES}, ordinal={"order": ["no", "some"]}, labels=named)


def test_labels_outside_the_order_can_be_skipped(load):
    data = load({"grade": GRADES}, ordinal={"order": ["none", "mild"]}, on_bad_row="skip")
    assert len(data.splits["train"]) == 30 and len(data.bad_examples) == 10


def test_a_class_without_a_training_row_and_the_order_of_a_model(load):
    order = {"order": ["none", "mild", "severe"]}
    parts = ["test" if grade == "severe" else "train" for grade in GRADES]
    with pytest.raises(InputError, match="no training row has the label 'severe'"):
        load({"grade": GRADES, "part": parts}, ordinal=order, split_column="part")
    few = load({"grade": ["none", "mild"] * 20}, ordinal=order, model=["none", "mild", "severe"])
    assert few.label_names == ["none", "mild", "severe"]
    with pytest.raises(InputError, match="the model's order is severe < mild < none"):
        load({"grade": GRADES}, ordinal=order, model=["severe", "mild", "none"])


def test_the_sample_has_words_and_moods(section):
    words = load_data(section(source="sample", regression={}), task="image-classification", splits=["train"])
    assert words.label_names == ["words"]
    assert np.asarray(words.splits["train"]["numbers"]).min() == 1
    order = {"order": ["negative", "neutral", "positive"]}
    moods = load_data(section(source="sample", ordinal=order), task="image-text-classification", splits=["train"])
    assert np.bincount(moods.splits["train"]["label"]).tolist() == [42, 19, 26]
    with pytest.raises(InputError, match="column 'age' is asked for, but data.source 'sample' has no columns"):
        load_data(section(source="sample", regression={"columns": ["age"]}), task="image-classification")


def test_data_sets_of_datasets(section, tmp_path, encode):
    grades = datasets.ClassLabel(names=["mild", "none", "severe"])
    features = datasets.Features(
        {"image": datasets.Image(), "age": datasets.Value("float32"), "grade": grades, "size": datasets.Value("int32")}
    )
    rows = {
        "image": [{"bytes": encode(), "path": None}] * 40,
        "age": AGES,
        "grade": [grades.str2int(grade) for grade in GRADES],
        "size": list(range(40)),
    }
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(str(tmp_path / "d"))
    given = section(source="hub", path=str(tmp_path / "d"), columns={"label": "age"}, regression={})
    assert np.asarray(load_data(given, task="image-classification").splits["train"]["numbers"])[:, 0].tolist() == AGES
    both = {"columns": ["size", "age"]}
    given = section(source="hub", path=str(tmp_path / "d"), columns={"label": "absent"}, regression=both)
    assert load_data(given, task="image-classification").splits["train"]["numbers"][4] == [4.0, 1.0]
    order = {"order": ["none", "mild", "severe"]}
    given = section(source="hub", path=str(tmp_path / "d"), columns={"label": "grade"}, ordinal=order)
    assert load_data(given, task="image-classification").splits["train"]["label"][:3] == [1, 0, 2]
