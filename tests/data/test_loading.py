from __future__ import annotations

import logging

import datasets
import pandas as pd
import pytest

from mmhf.data import screen
from mmhf.data.loading import load_data
from mmhf.errors import InputError


@pytest.fixture
def table(tmp_path, encode):
    """60 rows; the image of every tenth is missing, the text of row 2 empty."""
    for number in range(60):
        if number % 10:
            (tmp_path / f"{number}.jpg").write_bytes(encode())
    rows = [
        {"image": f"{number}.jpg", "text": "" if number == 1 else f"text {number}", "label": "ab"[number % 2]}
        for number in range(60)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def load(section, table, *, check_images=True, **values):
    return load_data(section(source="table", train=str(table), **values), check_images=check_images)


def test_a_limit_is_met_in_spite_of_bad_rows_and_keeps_the_order(section, table):
    data = load(section, table, limit=50)
    rows = data.splits["train"]["row"][:]
    assert len(rows) == 50 and rows == sorted(rows)
    again, other = load(section, table, limit=50), load(section, table, limit=50, limit_seed=1)
    assert again.splits["train"]["row"][:] == rows != other.splits["train"]["row"][:]
    assert len(load(section, table, limit=1000).splits["train"]) == 54


def test_a_limit_draws_first_and_checks_then(section, table, monkeypatch):
    checked = []
    original = screen.SplitScreen._usable_rows
    monkeypatch.setattr(
        screen.SplitScreen, "_usable_rows", lambda self, rows: checked.extend(rows) or original(self, rows)
    )
    load(section, table, limit=5)
    assert len(checked) < 15


@pytest.mark.parametrize(
    ("on_empty_text", "kept", "listed"),
    [("blank", True, True), ("skip", False, True), ("keep", True, False), ("mask", True, False)],
)
def test_empty_text(section, table, on_empty_text, kept, listed):
    """A text that may be empty is counted, and no bad row."""
    data = load(section, table, on_empty_text=on_empty_text)
    assert data.empty_texts == ({} if listed else {"train": 1})
    assert (2 in data.splits["train"]["row"][:]) is kept
    assert (("train", 2, "2", "the text is empty") in data.bad_examples) is listed


def test_bad_rows_are_counted_in_the_log(section, table, caplog):
    with caplog.at_level(logging.WARNING):
        load(section, table)
    assert "7 bad rows in train" in caplog.text


def test_images_need_not_be_looked_into(section, table):
    data = load(section, table, check_images=False)
    assert data.num_rows("train") == 60
    assert [example.row for example in data.bad_examples] == [2]


def test_paths_are_judged_even_when_images_are_not_looked_into(section, table):
    table.write_text(table.read_text().replace("11.jpg", "../11.jpg"))
    with pytest.raises(InputError, match="row 12: the image path leaves the data folder"):
        load(section, table, check_images=False)


def test_progress_is_shown_for_many_images(section, table, monkeypatch, capfd):
    monkeypatch.setattr(screen, "_PROGRESS_ABOVE", 10)
    assert load(section, table).num_rows("train") == 54


def test_the_fingerprint_follows_what_training_sees(section, table, encode):
    first = load(section, table).fingerprint()
    assert set(first) == {"train"} and len(first["train"]) == 64
    assert load(section, table).fingerprint() == first
    moved = table.parent.parent / "moved"
    table.parent.rename(moved)
    assert load(section, moved / "t.csv").fingerprint() == first
    text = (moved / "t.csv").read_text()
    (moved / "t.csv").write_text(text.replace("text 33", "text three"))
    assert load(section, moved / "t.csv").fingerprint() != first
    (moved / "t.csv").write_text(text)
    (moved / "33.jpg").write_bytes(encode("blue", quality=5) + b"\0")
    assert load(section, moved / "t.csv").fingerprint() != first


@pytest.mark.parametrize("column", ["text", "nothing"])
def test_image_classification_reads_no_text(section, table, column):
    values = {"train": str(table), "columns": {"text": column}, "on_empty_text": "raise"}
    data = load_data(section(source="table", **values), task="image-classification")
    assert data.num_rows("train") == 54 and set(data.splits["train"]["text"]) == {""}
    assert all(example.reason != "the text is empty" for example in data.bad_examples)


def test_image_classification_of_a_data_set(section, encode, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {"image": [{"bytes": encode(), "path": None}] * 4, "label": [0, 1, 0, 1]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "set" / "train-0.parquet")
    for streaming in (False, True):
        hub = section(source="hub", path=str(tmp_path / "set"), streaming=streaming)
        data = load_data(hub, task="image-classification")
        rows = list(data.splits["train"])
        assert data.label_names == ["cat", "dog"]
        assert [(row["label"], row["text"]) for row in rows] == [(0, ""), (1, ""), (0, ""), (1, "")]


def test_image_classification_of_the_sample(section):
    data = load_data(section(source="sample"), task="image-classification")
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 1419, "validation": 464, "test": 932}
    assert len(data.label_names) == 9 and data.label_names == sorted(data.label_names)
    ids = data.splits["train"]["id"][:]
    assert len(set(ids)) == len(ids)


def test_an_unknown_task(section):
    with pytest.raises(InputError, match="task 'dancing'"):
        load_data(section(source="sample"), task="dancing")
