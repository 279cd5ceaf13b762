from __future__ import annotations

import json
from collections import Counter

import pandas as pd
import pytest
from pydantic import ValidationError

from mmhf.data.loading import load_data
from mmhf.errors import InputError


@pytest.fixture
def folder(tmp_path, encode):
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(encode(kind="PNG"))
    return tmp_path


def frame(count: int = 40) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "file": [f"pictures/{number}.png" for number in range(count)],
            "words": [f"text {number}" for number in range(count)],
            "verdict": ["b", "a", "a", "c"] * (count // 4),
            "author": [f"author {number % 8}" for number in range(count)],
            "part": (["train"] * 5 + ["val", "test", "Test"]) * (count // 8),
        }
    )


COLUMNS = {"image": "file", "text": "words", "label": "verdict"}


def load(section, values, **options):
    return load_data(section(source="table", **{"columns": COLUMNS, **values}), **options)


def test_one_file_is_cut_and_keeps_row_numbers(section, folder):
    frame().to_csv(folder / "t.csv", index=False)
    data = load(section, {"path": str(folder / "t.csv"), "split": {"validation": 0.2, "test": 0.2}})
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 24, "validation": 8, "test": 8}
    assert data.label_names == ["a", "b", "c"]
    assert sorted(row for rows in data.splits.values() for row in rows["row"]) == list(range(1, 41))
    for rows in data.splits.values():
        assert rows["text"][:] == [f"text {row - 1}" for row in rows["row"]]
        assert rows["id"][:] == [str(row) for row in rows["row"]]
    assert Counter(data.splits["validation"]["label"]) == {0: 4, 1: 2, 2: 2}


def test_groups_stay_together(section, folder):
    frame().to_json(folder / "t.jsonl", orient="records", lines=True)
    split = {"validation": 0.25, "test": 0.25, "group_by": "author"}
    data = load(section, {"path": str(folder / "t.jsonl"), "split": split, "columns": {**COLUMNS, "id": "author"}})
    authors = [set(rows["id"]) for rows in data.splits.values()]
    assert sum(map(len, authors)) == len(set().union(*authors)) == 8


def test_a_column_can_say_the_split(section, folder):
    frame().to_csv(folder / "t.tsv", sep="\t", index=False)
    data = load(section, {"path": str(folder / "t.tsv"), "split_column": "part"})
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 25, "validation": 5, "test": 10}
    odd = frame()
    odd.loc[3, "part"] = "holdout"
    odd.to_csv(folder / "t.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match="row 4: part is 'holdout'"):
        load(section, {"path": str(folder / "t.tsv"), "split_column": "part"})


def test_separate_files_share_one_label_set(section, folder):
    frame().iloc[:20].to_csv(folder / "train.csv", index=False)
    frame().iloc[[1, 2]].to_csv(folder / "test.csv", index=False)
    files = {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")}
    data = load(section, files, splits=["test"])
    assert list(data.splits) == ["test"]
    assert data.label_names == ["a", "b", "c"]
    with pytest.raises(InputError, match="no split 'validation'"):
        load(section, files, splits=["validation"])


def test_labels_are_named_merged_and_ordered_by_the_map(section, folder):
    frame().to_csv(folder / "t.csv", index=False)
    values = {"path": str(folder / "t.csv"), "labels": {"c": "bad", "a": "good", "b": "bad"}}
    data = load(section, values)
    assert data.label_names == ["bad", "good"]
    assert Counter(label for rows in data.splits.values() for label in rows["label"]) == {0: 20, 1: 20}
    del values["labels"]["b"]
    with pytest.raises(InputError, match=r"t.csv, row 1: unknown label 'b'"):
        load(section, values | {"split": {"validation": 0.0, "test": 0.0}})


def test_numbers_as_labels_are_ordered_as_numbers(section, folder):
    numbers = frame().assign(verdict=[10, 9, 9, 100] * 10)
    numbers.to_parquet(folder / "t.parquet")
    assert load(section, {"path": str(folder / "t.parquet")}).label_names == ["9", "10", "100"]


def test_a_models_labels_decide_the_ids(section, folder):
    frame().to_csv(folder / "t.csv", index=False)
    values = {"path": str(folder / "t.csv"), "split": {"validation": 0.0, "test": 0.0}}
    data = load(section, values, label_names=["c", "x", "b", "a"])
    assert data.label_names == ["c", "x", "b", "a"]
    assert data.splits["train"]["label"][:4] == [2, 3, 3, 0]
    with pytest.raises(InputError, match="the model has no label 'c'"):
        load(section, values, label_names=["a", "b"])


@pytest.mark.parametrize("shape", ["bytes", "struct"])
def test_parquet_with_images_inside(section, tmp_path, encode, shape):
    content = [encode("red"), encode("blue"), b"", encode("red")]
    images = content if shape == "bytes" else [{"bytes": value, "path": "x.jpg"} for value in content]
    pd.DataFrame({"image": images, "text": list("abcd"), "label": list("xyxy")}).to_parquet(tmp_path / "t.parquet")
    section_values = {"path": str(tmp_path / "t.parquet"), "columns": {}, "split": {"validation": 0.0, "test": 0.0}}
    data = load(section, section_values)
    assert [image["bytes"] for image in data.splits["train"]["image"]] == [content[0], content[1], content[3]]
    assert [example[:3] for example in data.bad_examples] == [("train", 3, "3")]


def test_image_root(section, folder):
    (folder / "tables").mkdir()
    frame().to_csv(folder / "tables" / "t.csv", index=False)
    values = {"path": str(folder / "tables" / "t.csv")}
    with pytest.raises(InputError, match="none can be used; row .*missing"):
        load(section, values)
    assert sum(map(len, load(section, {**values, "image_root": str(folder)}).splits.values())) == 40
    with pytest.raises(InputError, match="data.image_root: no such folder"):
        load(section, {**values, "image_root": str(folder / "absent")})


def test_malformed_rows(section, folder):
    lines = [json.dumps(row) for row in frame(8).to_dict("records")]
    lines[2] = "{cut off"
    lines[3] = json.dumps({**frame(8).iloc[3].to_dict(), "words": ["a", "list"]})
    lines[5] = json.dumps({**frame(8).iloc[5].to_dict(), "verdict": None})
    (folder / "t.jsonl").write_text("\n".join(lines))
    values = {"path": str(folder / "t.jsonl"), "split": {"validation": 0.0, "test": 0.0}}
    with pytest.raises(InputError, match="t.jsonl, row 3: not JSON"):
        load(section, values)
    data = load(section, {**values, "on_bad_row": "skip"})
    assert data.splits["train"]["row"][:] == [1, 2, 5, 7, 8]
    assert [(example.row, example.reason.split(":")[0]) for example in data.bad_examples] == [
        (3, "not JSON"),
        (4, "words is a list, not a text"),
        (6, "the label is missing"),
    ]


def test_one_label_is_no_classification(section, folder):
    frame().assign(verdict="a").to_csv(folder / "t.csv", index=False)
    with pytest.raises(InputError, match="at least two labels, found a"):
        load(section, {"path": str(folder / "t.csv")})
    assert load(section, {"path": str(folder / "t.csv")}, label_names=["a", "b"]).label_names == ["a", "b"]


def test_the_version_stands_in_the_paths(section, folder):
    (folder / "v2").mkdir()
    frame().to_csv(folder / "v2" / "t.csv", index=False)
    values = {"path": str(folder / "{version}" / "t.csv"), "image_root": str(folder)}
    assert load(section, {**values, "version": "v2"}).splits["train"].num_rows == 32
    with pytest.raises(ValidationError, match="a path holds .version., but `version` is absent"):
        load(section, values)
    with pytest.raises(ValidationError, match="version = v2, but no path holds"):
        load(section, {"path": str(folder / "v2" / "t.csv"), "version": "v2"})


def test_filters_and_placeholders(section, folder):
    table = frame().assign(words=["No caption", "x", "y", "z"] * 10, dataset=["fitz", "ddi"] * 20)
    table.to_csv(folder / "t.csv", index=False)
    filters = {"datasets": ["ddi"], "has_text": True, "where": {"part": {"exclude": ["Test"]}}}
    values = {"path": str(folder / "t.csv"), "missing": ["no *"], "filters": filters}
    data = load(section, values, task="image-text-classification")
    rows = sorted(row for part in data.splits.values() for row in part["row"])
    assert rows == [number + 1 for number in range(40) if number % 2 == 1 and number % 8 != 7]
    assert data.filter_steps[-1].rows == len(rows)
    assert data.label_names == ["a", "c"]
    pictures = {**values, "filters": {"has_text": False}, "labels": {"b": "b", "a": "a"}}
    with pytest.raises(InputError, match="at least two labels, found b"):
        load(section, {**pictures, "labels": None}, task="image-classification")
    kept = load(section, pictures, task="image-classification")
    assert kept.filter_steps[-1] == ("where.words: null", 10)


def test_a_group_in_two_splits_that_are_given(section, folder):
    frame().iloc[:20].to_csv(folder / "train.csv", index=False)
    frame().iloc[20:].to_csv(folder / "test.csv", index=False)
    files = {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")}
    message = r"train.csv, row 5 \(train\) and .*test.csv, row 1 \(test\): author 'author 4' is in both splits"
    with pytest.raises(InputError, match=message):
        load(section, {**files, "split": {"group_by": "author"}})
    given = frame().assign(words=["same", "other", "third", "same"] * 10, part=["train", "train", "train", "val"] * 10)
    given.to_csv(folder / "t.csv", index=False)
    with pytest.raises(InputError, match=r"row 1 \(train\) and .*, row 4 \(validation\): words 'same' is in both"):
        load(section, {"path": str(folder / "t.csv"), "split_column": "part", "split": {"group_by": "words"}})


def test_a_label_with_too_few_rows_in_a_split(section, folder):
    rare = frame().assign(verdict=["a"] * 19 + ["b"] * 21)
    rare.iloc[:20].to_csv(folder / "train.csv", index=False)
    rare.iloc[20:].to_csv(folder / "test.csv", index=False)
    files = {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")}
    with pytest.raises(InputError, match=r"train.csv: label 'b' has 1 rows in train \(21 in all\), .*per_label = 10"):
        load(section, {**files, "filters": {"min_samples_per_label": 10}})
    with pytest.raises(InputError, match=r"test.csv: label 'a' has 0 rows in test \(19 in all\), .*per_split = 1"):
        load(section, {**files, "filters": {"min_samples_per_label": 1}})
    allowed = {"min_samples_per_label": 1, "min_samples_per_split": 0}
    assert load(section, {**files, "filters": allowed}).label_names == ["a", "b"]
    rare.to_csv(folder / "t.csv", index=False)
    cut = {"path": str(folder / "t.csv"), "split": {"validation": 0.1, "test": 0.0}}
    with pytest.raises(InputError, match=r"label '[ab]' has \d rows in validation"):
        load(section, {**cut, "filters": {"min_samples_per_label": 5, "min_samples_per_split": 5}})
