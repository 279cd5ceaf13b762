from __future__ import annotations

import json
import logging
import os

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmhf.data.loading import load_data
from mmhf.errors import InputError

UNCUT = {"validation": 0.0, "test": 0.0}


@pytest.fixture
def folder(tmp_path, encode):
    for number in range(12):
        (tmp_path / f"{number}.jpg").write_bytes(encode())
    return tmp_path


def load(section, path, frame, **values):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")), encoding="utf-8")
    values = {"split": UNCUT, **values}
    return load_data(section(source="table", path=str(path), **values), task="image-classification")


def frame(labels):
    return pd.DataFrame({"image": [f"{number}.jpg" for number in range(len(labels))], "label": labels})


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0.0", "1.0", "0", "1"], ["0", "1"]),
        (["False", "true", "FALSE", "True"], ["false", "true"]),
        (["caf\u00e9", "cafe\u0301", " b ", "b"], ["b", "caf\u00e9"]),
        (["v1.0", "2.0", "x", "2.0"], ["2.0", "v1.0", "x"]),
        (["NA", "None", "NA", "None"], ["NA", "None"]),
    ],
)
def test_one_label_is_written_one_way(section, folder, labels, names):
    assert load(section, folder / "t.csv", frame(labels)).label_names == names


def test_separate_files_and_the_recipes_map_agree(section, folder):
    frame(["0.0", "1.0"] * 2).to_csv(folder / "train.csv", index=False)
    frame(["0", "1"] * 2).to_csv(folder / "val.csv", index=False)
    files = {"train": str(folder / "train.csv"), "validation": str(folder / "val.csv")}
    data = load_data(section(source="table", **files), task="image-classification")
    assert data.label_names == ["0", "1"] and data.splits["train"]["label"][:] == data.splits["validation"]["label"][:]
    named = section(source="table", **files, labels={"0": "no", "1": "yes"})
    assert load_data(named, task="image-classification").label_names == ["no", "yes"]
    old = load_data(section(source="table", **files), task="image-classification", label_names=["1.0", "0.0"])
    assert old.label_names == ["1.0", "0.0"] and old.splits["train"]["label"][:] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["cat"], ["dog", "cat"]] * 2, "is a list or an object; a row has one class"),
        ([[0, 1], [1, 0]] * 2, "is a list or an object"),
        ([{"cat": 1}, {"dog": 1}] * 2, "is a list or an object"),
        ([0, 1, False, True], "written in two ways, as 0 and 1 and as false and true"),
        ([11.13 * number for number in range(12)], "12 labels for 12 rows, such as '0': a number .data.regression: "),
        ([f"name {number}" for number in range(12)], "12 labels for 12 rows"),
    ],
)
def test_what_is_no_class_is_refused(section, folder, labels, message):
    with pytest.raises(InputError, match=message):
        load(section, folder / "t.jsonl", frame(labels))


def test_labels_without_a_training_row_and_of_one_row_are_named(section, folder, caplog):
    table = frame(["a", "b", "a", "b", "c", "d", "d"]).assign(part=["train"] * 4 + ["val", "test", "test"])
    with caplog.at_level(logging.WARNING):
        load(section, folder / "t.csv", table, split_column="part")
    assert "labels of a single row: 'c'" in caplog.text and "labels without a training row: 'c', 'd'" in caplog.text


def test_the_first_reason_is_the_message_where_no_row_can_be_read(section, folder):
    (folder / "t.csv").write_text("image,label\n0.jpg\n1.jpg\n")
    with pytest.raises(InputError, match="row 1: 1 fields instead of 2"):
        load_data(section(source="table", path=str(folder / "t.csv")), task="image-classification")


def test_class_names_of_parquet_are_used(section, folder, encode):
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Value("string"), "label": names})
    rows = {"image": ["0.jpg", "1.jpg", "2.jpg"], "label": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "t.parquet"))
    table = section(source="table", path=str(folder / "t.parquet"), split=UNCUT)
    data = load_data(table, task="image-classification")
    assert data.label_names == ["cat", "dog"] and data.splits["train"]["label"][:] == [1, 0, 1]


def test_images_by_bytes_or_path_row_by_row(section, folder, encode):
    content = encode("blue")
    images = [{"bytes": content if number % 2 else None, "path": f"{number}.jpg"} for number in range(4)]
    pq.write_table(pa.table({"image": images, "label": ["a", "b"] * 2}), folder / "t.parquet")
    table = section(source="table", path=str(folder / "t.parquet"), split=UNCUT)
    data = load_data(table, task="image-classification")
    assert data.bad_examples == [] and data.num_rows("train") == 4
    assert [image["bytes"] for image in data.splits["train"]["image"]] == [None, content] * 2


def test_names_of_images_as_other_systems_write_them(section, folder, encode):
    (folder / "deep").mkdir()
    (folder / "deep" / "cafe\u0301.jpg").write_bytes(encode())
    images = ["deep\\cafe\u0301.jpg", "deep/caf\u00e9.jpg", str(folder / "0.jpg"), "1.jpg"]
    data = load(section, folder / "t.csv", pd.DataFrame({"image": images, "label": ["a", "b"] * 2}))
    paths = [image["path"] for image in data.splits["train"]["image"]]
    assert data.bad_examples == [] and all(map(os.path.isfile, paths)) and paths[0] == paths[1]


def test_what_stands_in_place_of_a_path_is_said_shortly(section, folder):
    for value, reason in (("QUJD" * 100, "base64 text; write it as bytes"), ("x" * 9000 + ".jpg", "x…")):
        with pytest.raises(InputError, match=reason) as caught:
            load(section, folder / "t.csv", frame(["a", "b"]).assign(image=[value, "1.jpg"]), on_bad_image="raise")
        assert len(str(caught.value)) < 500


def test_links_out_of_the_folder_are_followed_on_request(section, folder, encode):
    (folder.parent / "blob").write_bytes(encode())
    (folder / "0.jpg").unlink()
    os.symlink(folder.parent / "blob", folder / "0.jpg")
    with pytest.raises(InputError, match="data.follow_links=true follows it"):
        load(section, folder / "t.csv", frame(["a", "b"]))
    assert load(section, folder / "t.csv", frame(["a", "b"]), follow_links=True).num_rows("train") == 2


def test_json_that_is_odd_is_read_or_one_bad_row(section, folder):
    rows = [{"image": f"{number}.jpg", "label": "ab"[number % 2]} for number in range(4)]
    (folder / "t.jsonl").write_text(json.dumps(rows, indent=1))
    values = {"source": "table", "path": str(folder / "t.jsonl"), "split": UNCUT, "on_bad_row": "skip"}
    assert load_data(section(**values), task="image-classification").num_rows("train") == 4
    odd = [f'{{"image": "1.jpg", "label": {"9" * 5000}}}', "[" * 100_000, '{"image": "2.jpg", "label": "\\ud83d"}']
    (folder / "t.jsonl").write_text("\n".join([*map(json.dumps, rows), *odd]))
    data = load_data(section(**values), task="image-classification")
    assert data.label_names == ["?", "a", "b"] and [bad.row for bad in data.bad_examples] == [5, 6]
    big = [{**row, "label": 2**70 + number % 2} for number, row in enumerate(rows)]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, big)))
    assert load_data(section(**values), task="image-classification").label_names == [str(2**70), str(2**70 + 1)]


def test_what_save_to_disk_wrote(section, folder, encode):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {"image": [{"bytes": encode(), "path": None}] * 4, "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder / "saved"))
    data = load_data(section(source="hub", path=str(folder / "saved")), task="image-classification")
    assert data.label_names == ["cat", "dog"] and data.num_rows("train") == 4


def test_filters_and_limits_work_on_other_sources(load_captions, folder):
    rows = [{"image": f"{number}.jpg", "caption": f"c{number}", "kind": "ab"[number % 2]} for number in range(8)]
    pd.DataFrame(rows).to_csv(folder / "t.csv", index=False)
    values = {"source": "table", "train": str(folder / "t.csv"), "filters": {"where": {"kind": "a"}}}
    assert load_captions(**values).splits["train"]["id"][:] == ["0.jpg", "2.jpg", "4.jpg", "6.jpg"]
    assert load_captions(**values, limit=2).num_rows("train") == 2
