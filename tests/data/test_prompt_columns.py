"""Columns of captioned tables, which a prompt names: what is joined, cut, kept and left out."""

from __future__ import annotations

import datasets
import pytest

from mmhf.data.loading import load_data
from mmhf.errors import InputError

QUESTIONS = ("what is it", "which colour", "")


@pytest.fixture
def table(tmp_path, encode):
    """Twelve images with two answers to each of two questions, and a row without a question."""
    lines = ["image,question,caption"]
    for number in range(12):
        (tmp_path / f"{number}.jpg").write_bytes(encode())
        lines += [f"{number}.jpg,{question},answer {take}" for question in QUESTIONS[:2] for take in (1, 2)]
    (tmp_path / "t.csv").write_text("\n".join([*lines, "0.jpg,,nobody asked"]) + "\n")
    return tmp_path / "t.csv"


@pytest.fixture
def load(caption_section):
    def make(**options):
        section = caption_section(**{"source": "table", **options.pop("section")})
        columns = {"extra_columns": ["question"], **options}
        return load_data(section, task="image-captioning", **columns)

    return make


def test_captions_are_joined_by_image_and_question(table, load):
    data = load(section={"train": str(table)}, required_columns=["question"])
    rows = data.splits["train"]
    assert len(rows) == 24 and rows["captions"][:] == [["answer 1", "answer 2"]] * 24
    assert rows["extra.question"][:2] == list(QUESTIONS[:2])
    (bad,) = data.bad_examples
    assert (bad.row, bad.reason) == (49, "question is empty, and the prompt needs it")
    assert len(load(section={"train": str(table)}).splits["train"]) == 25
    joined = load(section={"train": str(table)}, extra_columns=[]).splits["train"]
    assert len(joined) == 12 and "extra.question" not in joined.column_names
    with pytest.raises(
        InputError, match="row 49.*question is empty, and the prompt needs it; data.on_empty_text=skip"
    ):
        load(section={"train": str(table), "on_empty_text": "raise"}, required_columns=["question"])


def test_questions_about_one_image_stay_in_one_split(table, load):
    data = load(section={"path": str(table), "split": {"validation": 0.25, "test": 0.25}})
    images = {split: {row["path"] for row in rows["image"][:]} for split, rows in data.splits.items()}
    assert sum(map(len, images.values())) == 12 and all(images.values())


def test_a_column_that_a_table_lacks_is_named_with_the_nearest(table, load):
    with pytest.raises(InputError, match="no column 'qestion'.*did you mean.*question"):
        load(section={"train": str(table)}, extra_columns=["qestion"])


def test_sources_without_columns_say_so(tmp_path, load, encode, write_tar):
    with pytest.raises(InputError, match="'sample' has the columns group and subgroup and vendor; did you mean group"):
        load(section={"source": "sample"}, extra_columns=["groop"])
    tar = write_tar("a.tar", {"1.jpg": encode(), "1.txt": "a"})
    with pytest.raises(InputError, match="column 'question' is asked for, but a stream keeps no columns"):
        load(section={"source": "webdataset", "train": str(tar)})
    with pytest.raises(InputError, match="column 'question' is asked for, but data.source 'flickr30k' has none"):
        load(section={"source": "flickr30k", "path": str(tmp_path)})


def test_hub_data_is_joined_by_id_and_question(tmp_path, load, encode):
    rows = {
        "image": [{"bytes": encode(), "path": None}] * 4,
        "photo": ["a", "a", "a", "b"],
        "question": ["q", "q", "r", "q"],
        "caption": ["1", "2", "3", "4"],
    }
    features = datasets.Features(
        {"image": datasets.Image(), **{name: datasets.Value("string") for name in rows if name != "image"}}
    )
    folder = str(tmp_path / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(folder)
    read = load(section={"source": "hub", "path": folder, "columns": {"id": "photo"}}).splits["train"]
    assert read["captions"][:] == [["1", "2"], ["3"], ["4"]] and read["extra.question"][:] == ["q", "r", "q"]
