"""Several labels a row: how tables write them, and what is refused."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pandas as pd
import pytest

from mmhf.data.label_sets import read_label_sets
from mmhf.data.loading import load_data
from mmhf.errors import InputError
from mmhf.recipe.target_sections import MultiLabelSection

SETS = [["cat"], ["dog", "cat"], [], ["owl"], ["cat", "owl"], ["dog"], ["owl", "dog"], ["cat"]] * 5


@pytest.fixture
def folder(tmp_path, encode):
    for number in range(len(SETS)):
        (tmp_path / f"{number}.png").write_bytes(encode(kind="PNG"))
    return tmp_path


@pytest.fixture
def load(section, folder):
    """Write a table with these columns beside the images, and load it."""

    def load(columns, multi_label, *, name="t.jsonl", model=None, splits=None, **values):
        frame = pd.DataFrame({"file": [f"{number}.png" for number in range(len(SETS))], **columns})
        path = folder / name
        if path.suffix == ".csv":
            frame.to_csv(path, index=False)
        elif path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_json(path, orient="records", lines=True)
        values = {"split": {"validation": 0.0, "test": 0.0}, **values}
        given = section(
            source="table",
            path=str(path),
            columns={"image": "file", "label": "tags"},
            multi_label=multi_label,
            **values,
        )
        return load_data(given, task="image-classification", label_names=model, splits=splits)

    return load


def sets_in(data, split="train"):
    rows = data.splits[split]
    assert rows.features["labels"] == datasets.List(datasets.Value("int8"), length=len(data.label_names))
    assert "label" not in rows.column_names
    return [{name for name, has in zip(data.label_names, row, strict=True) if has} for row in rows["labels"]]


@pytest.mark.parametrize(
    ("name", "cells", "given"),
    [
        ("t.jsonl", SETS, {}),
        ("t.parquet", SETS, {}),
        ("t.csv", [json.dumps(labels) for labels in SETS], {}),
        ("t.csv", [str(labels) for labels in SETS], {}),
        ("t.csv", ["|".join(labels) for labels in SETS], {"separator": "|"}),
        ("t.csv", [" , ".join(labels) for labels in SETS], {"separator": ","}),
    ],
)
def test_lists_and_separated_texts(load, name, cells, given):
    data = load({"tags": cells}, {"empty": "none", **given}, name=name)
    assert data.label_names == ["cat", "dog", "owl"]
    assert sets_in(data) == [set(labels) for labels in SETS]
    assert not data.bad_examples


@pytest.mark.parametrize("write", [int, bool, float, lambda has: "TRUE" if has else "False", lambda has: f"{has:.1f}"])
def test_a_column_for_each_label(load, write):
    columns = {name: [write(name in labels) for labels in SETS] for name in ("owl", "cat", "dog")}
    data = load(columns, {"columns": ["owl", "cat", "dog"]}, name="t.csv")
    assert data.label_names == ["owl", "cat", "dog"], "in the recipe's order"
    assert sets_in(data) == [set(labels) for labels in SETS]


def test_the_recipe_says_what_an_empty_list_means(load):
    with pytest.raises(InputError, match=r"t.jsonl, row 3: has no labels, like 5 of 40 rows; .* `none` .* `missing`"):
        load({"tags": SETS}, {})
    none = load({"tags": SETS}, {"empty": "none"})
    assert len(none.splits["train"]) == 40
    with pytest.raises(InputError, match="row 3: the labels are missing; data.on_bad_row=skip"):
        load({"tags": SETS}, {"empty": "missing"})
    missing = load({"tags": SETS}, {"empty": "missing"}, on_bad_row="skip")
    assert len(missing.splits["train"]) == 35
    assert [bad.row for bad in missing.bad_examples] == [3, 11, 19, 27, 35]


def test_a_blank_among_columns(load):
    columns = {name: [int(name in labels) for labels in SETS] for name in ("cat", "dog")}
    columns["dog"][4] = None
    with pytest.raises(InputError, match="row 5: has no labels, like 1 of 40 rows"):
        load(columns, {"columns": ["cat", "dog"]})
    assert sets_in(load(columns, {"columns": ["cat", "dog"], "empty": "none"}))[4] == {"cat"}
    skipped = load(columns, {"columns": ["cat", "dog"], "empty": "missing"}, on_bad_row="skip")
    assert [bad.row for bad in skipped.bad_examples] == [5]


def test_names_choose_the_labels_and_their_order(load):
    named = {"names": ["owl", "cat"], "empty": "none"}
    with pytest.raises(InputError, match="row 2: unknown label 'dog'"):
        load({"tags": SETS}, named)
    skipped = load({"tags": SETS}, named, on_bad_row="skip")
    assert [bad.reason for bad in skipped.bad_examples] == ["unknown label 'dog'"] * 15
    ignored = load({"tags": SETS}, {**named, "others": "ignore"})
    assert ignored.label_names == ["owl", "cat"]
    assert sets_in(ignored) == [set(labels) - {"dog"} for labels in SETS]
    with pytest.raises(InputError, match="no training row has the label 'lynx'; leave it out"):
        load({"tags": SETS}, {**named, "names": ["owl", "lynx", "cat"], "others": "ignore"})


def test_a_mistyped_name_is_guessed(load):
    cells = [*SETS[:-1], ["caat"]]
    with pytest.raises(InputError, match="row 40: unknown label 'caat'; did you mean cat"):
        load({"tags": cells}, {"names": ["cat", "dog", "owl"], "empty": "none"})


def test_numbers_are_labels_written_one_way(load):
    cells = [["1"] if number % 2 else ["2.0", "1.0"] for number in range(40)]
    assert load({"tags": cells}, {}).label_names == ["1", "2"]
    assert load({"tags": [[1, 2] if number % 2 else [2] for number in range(40)]}, {}).label_names == ["1", "2"]


@pytest.mark.parametrize(
    ("cells", "given", "says"),
    [
        (["cat"] * 40, {}, "row 1: tags is the text 'cat' and no list; data.multi_label.separator"),
        ([{"cat": 1}] * 40, {}, "row 1: tags is .* not a list of labels"),
        ([[["cat"], "dog"]] * 40, {}, "row 1: tags holds .* where a label is a name or a number"),
        ([[1, 0, 1]] * 40, {}, "the labels are 0 and 1: zeros and ones in a list do not say of what"),
        (["cat;dog"] * 40, {"separator": "|"}, "needs at least two labels, found cat;dog"),
    ],
)
def test_what_are_no_labels(load, cells, given, says):
    with pytest.raises(InputError, match=says):
        load({"tags": cells}, given)


def test_other_values_than_0_and_1_in_columns():
    section = MultiLabelSection(columns=["cat", "dog"])
    sets, faults = read_label_sets({"cat": ["1", "yes", 0.5], "dog": [0, 1, 1]}, section)
    assert sets.to_pylist() == [["cat"], None, None]
    assert faults[1] == "cat is 'yes', where 1 or true stands for a label and 0 or false for none"
    assert faults[2].startswith("cat is '0.5'")


def test_a_model_keeps_its_labels(load):
    data = load({"tags": SETS}, {"empty": "none"}, model=["zebra", "owl", "dog", "cat"])
    assert data.label_names == ["zebra", "owl", "dog", "cat"]
    assert sets_in(data) == [set(labels) for labels in SETS]
    with pytest.raises(InputError, match="the model has no label 'owl'"):
        load({"tags": SETS}, {"empty": "none"}, model=["cat", "dog"])


def test_splits_are_stratified_and_labels_are_in_the_fingerprint(load):
    cut = {"split": {"validation": 0.25, "test": 0.25}}
    data = load({"tags": SETS}, {"empty": "none"}, **cut)
    shares = [np.asarray(rows["labels"]).sum(axis=0) for rows in data.splits.values()]
    assert [each.tolist() for each in shares] == [[10, 8, 8], [5, 4, 4], [5, 3, 3]] or all(
        np.abs(each - whole * share).max() <= 2
        for each, share in zip(shares, (0.5, 0.25, 0.25), strict=True)
        for whole in [np.array([20, 15, 15])]
    )
    changed = [*SETS[:-1], ["cat", "dog"]]
    assert load({"tags": changed}, {"empty": "none"}, **cut).fingerprint() != data.fingerprint()


def test_the_sample_gives_the_keywords_of_its_drawings(section):
    names = {"names": ["face", "animal", "food"], "others": "ignore"}
    data = load_data(section(source="sample", multi_label=names), task="image-classification")
    assert np.asarray(data.splits["train"]["labels"]).sum(axis=0).tolist() == [144, 107, 47]
    pairs = load_data(section(source="sample", multi_label=names), task="image-text-classification", splits=["test"])
    assert pairs.splits["test"]["text"][0]


def test_a_data_set_of_lists_of_classes(section, tmp_path, encode):
    kinds = datasets.ClassLabel(names=["cat", "dog", "owl"])
    features = datasets.Features({"image": datasets.Image(), "tags": datasets.List(kinds)})
    ids = [[kinds.str2int(label) for label in labels] for labels in SETS]
    rows = {"image": [{"bytes": encode(), "path": None}] * len(SETS), "tags": ids}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(str(tmp_path / "d"))
    given = section(source="hub", path=str(tmp_path / "d"), columns={"label": "tags"}, multi_label={"empty": "none"})
    assert sets_in(load_data(given, task="image-classification")) == [set(labels) for labels in SETS]
