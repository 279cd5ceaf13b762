"""Tables as people have them: each is read to these labels or captions, or refused in these words."""

from __future__ import annotations

import codecs
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmhf.data.loading import LoadedData, load_data
from mmhf.errors import InputError

UNCUT = {"validation": 0.0, "test": 0.0}
ROWS = 4
AB = ["a", "b", "a", "b"]


def lines(labels: list[Any], *, end: str = "\n", separator: str = ",", header: str = "image,label") -> str:
    rows = [f"{number}.jpg{separator}{label}" for number, label in enumerate(labels)]
    return end.join([header.replace(",", separator), *rows, ""])


def json_lines(labels: list[Any]) -> str:
    return "".join(
        json.dumps({"image": f"{number}.jpg", "label": label}) + "\n" for number, label in enumerate(labels)
    )


def parquet(labels: pa.Array) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [f"{number}.jpg" for number in range(len(labels))], "label": labels}), sink)
    return sink.getvalue()


LABELS: dict[str, tuple[str, str | bytes, list[str]]] = {
    # Name: file, content, the label of each row.
    "BOM, CRLF, NA and None": ("t.csv", "\ufeff" + lines(["NA", "None"] * 2, end="\r\n"), ["NA", "None"] * 2),
    "CR, as old spreadsheets end lines": ("t.csv", lines(AB, end="\r"), AB),
    "empty lines at the end": ("t.csv", lines(AB) + "\n\r\n  \n", AB),
    "semicolons": ("t.csv", lines(AB, separator=";"), AB),
    "tabs in a file named .csv": ("t.csv", lines(AB, separator="\t"), AB),
    "commas as decimals beside semicolons": (
        "t.csv",
        lines(["a;1,5", "b;2,5"] * 2, separator=";", header="image,label,x"),
        AB,
    ),
    "UTF-16, as Excel saves Unicode text": (
        "t.csv",
        lines(["é", "b"] * 2, separator="\t").encode("utf-16"),
        ["é", "b"] * 2,
    ),
    "cp1252, as Excel saves CSV": ("t.csv", lines(["é", "b"] * 2, separator=";").encode("cp1252"), ["é", "b"] * 2),
    "an index without a name in front": (
        "t.csv",
        ",image,label\n" + "".join(f"{n},{n}.jpg,{AB[n]}\n" for n in range(4)),
        AB,
    ),
    "a quoted text over two lines": (
        "t.csv",
        "image,note,label\n" + "".join(f'{n}.jpg,"one, ""two""\r\nthree",{AB[n]}\n' for n in range(4)),
        AB,
    ),
    "a quoted text of 180,000 characters": (
        "t.csv",
        "image,note,label\n"
        + "".join(f'{n}.jpg,"{"word, " * (30_000 if n == 3 else 1)}",{AB[n]}\n' for n in range(4)),
        AB,
    ),
    "blanks at the ends": ("t.csv", lines(["a", "b ", " a", "b\t"]), AB),
    "accents in two forms": ("t.csv", lines(["caf\u00e9", "b", "cafe\u0301", "b"]), ["caf\u00e9", "b"] * 2),
    "whole numbers that were floats": ("t.csv", lines(["0.0", "1.0", "0", "1"]), ["0", "1"] * 2),
    "truth in three spellings": ("t.csv", lines(["True", "FALSE", "true", "false"]), ["true", "false"] * 2),
    "versions are no numbers": ("t.csv", lines(["1.0", "1.1", "1.0", "1.1"]), ["1.0", "1.1"] * 2),
    "zeros in front": ("t.csv", lines(["01", "1", "01", "1"]), ["01", "1"] * 2),
    "JSON lines": ("t.jsonl", json_lines(AB), AB),
    "JSON lines behind a BOM, with CRLF": (
        "t.jsonl",
        codecs.BOM_UTF8 + json_lines(AB).replace("\n", "\r\n").encode(),
        AB,
    ),
    "JSON lines with an empty one": ("t.jsonl", json_lines(AB).replace("\n", "\n\n", 2), AB),
    "an array named .jsonl": (
        "t.jsonl",
        json.dumps([json.loads(line) for line in json_lines(AB).splitlines()], indent=1),
        AB,
    ),
    "numbers, floats and truth in JSON": ("t.jsonl", json_lines([0, 1.0, 0.0, 1]), ["0", "1"] * 2),
    "integers beyond 64 bits": ("t.jsonl", json_lines([2**64, 2**70] * 2), [str(2**64), str(2**70)] * 2),
    "floats in Parquet": ("t.parquet", parquet(pa.array([0.0, 1.0, 0.0, 1.0])), ["0", "1"] * 2),
    "truth in Parquet": ("t.parquet", parquet(pa.array([True, False] * 2)), ["true", "false"] * 2),
    "small integers in Parquet": ("t.parquet", parquet(pa.array([0, 1, 0, 1], pa.uint8())), ["0", "1"] * 2),
    "a category of pandas": ("t.parquet", parquet(pa.array(AB).dictionary_encode()), AB),
    "large strings": ("t.parquet", parquet(pa.array(AB, pa.large_string())), AB),
}

REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "a column named twice": ("t.csv", lines(AB, header="image,label,label"), "two columns are named 'label'"),
    "every row broken": ("t.csv", "image,label\n0.jpg\n1.jpg\n", "row 1: 1 fields instead of 2"),
    "a binary file named .csv": ("t.csv", b"PK\x03\x04\x14\x00\x06\x00" + bytes(range(256)), "not UTF-8"),
    "an empty file": ("t.csv", "", "header"),
    "a header alone": ("t.csv", "image,label\n", "at least two labels, found none"),
    "numbers that each occur once": ("t.csv", lines([11.13 + 137.07 * n for n in range(12)]), "regression"),
    "an id": ("t.csv", lines([f"row {n}" for n in range(12)]), "12 labels for 12 rows"),
    "written lists": ("t.csv", lines(["\"['cat', 'dog']\"", "\"['cat']\""] * 2), "is a list or an object"),
    "lists": ("t.jsonl", json_lines([["cat"], ["cat", "dog"]] * 2), "is a list or an object"),
    "one-hot rows": ("t.jsonl", json_lines([[0, 1], [1, 0]] * 2), "is a list or an object"),
    "objects": ("t.jsonl", json_lines([{"cat": 1}, {"dog": 1}] * 2), "is a list or an object"),
    "lists in Parquet": ("t.parquet", parquet(pa.array([["a"], ["a", "b"]] * 2)), "is a list or an object"),
    "0 and 1 beside truth": ("t.jsonl", json_lines([0, 1, False, True]), "written in two ways"),
    "one label alone": ("t.csv", lines(["a"] * 4), "at least two labels, found a"),
    "no label column": ("t.csv", lines(AB, header="image,kind"), "label"),
    "a kind that is not known": ("t.json", json_lines(AB), r"unknown kind of table; expected .*\.jsonl"),
    "a page of HTML named .csv": ("t.csv", "<!DOCTYPE html>\n<html>\n<body>log in</body></html>\n", "no column"),
}


@pytest.fixture
def folder(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    for number in range(12):
        (tmp_path / f"{number}.jpg").write_bytes(encode())
    return tmp_path


def load(section: Callable[..., Any], folder: Path, name: str, content: str | bytes, **values: Any) -> LoadedData:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    table = section(source="table", path=str(folder / name), split=UNCUT, **values)
    return load_data(table, task="image-classification")


@pytest.mark.parametrize("case", LABELS)
def test_labels(section, folder: Path, case: str):
    name, content, expected = LABELS[case]
    data = load(section, folder, name, content)
    assert [data.label_names[label] for label in data.splits["train"]["label"]] == expected
    assert data.bad_examples == []


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(section, folder: Path, case: str):
    name, content, words = REFUSED[case]
    with pytest.raises(InputError, match=words) as caught:
        load(section, folder, name, content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


LISTS = ["a red dog", "it's a dog", 'a "big" dog']
CAPTIONS: dict[str, tuple[str, str | bytes, list[list[str]]]] = {
    # Name: file, content, the captions of each image.
    "numpy arrays as pandas writes them": (
        "t.csv",
        pd.DataFrame({"image": ["0.jpg", "1.jpg"], "caption": [np.array(LISTS), np.array(["a", "b"])]}).to_csv(
            index=False
        ),
        [LISTS, ["a", "b"]],
    ),
    "lists as pandas writes them": (
        "t.csv",
        pd.DataFrame({"image": ["0.jpg", "1.jpg"], "caption": [LISTS, ["a", None]]}).to_csv(index=False),
        [LISTS, ["a"]],
    ),
    "tuples as pandas writes them": (
        "t.csv",
        pd.DataFrame({"image": ["0.jpg", "1.jpg"], "caption": [tuple(LISTS), ("a",)]}).to_csv(index=False),
        [LISTS, ["a"]],
    ),
    "lists as JSON": ("t.csv", 'image,caption\n0.jpg,"[""a, b"", ""c""]"\n1.jpg,"[""d""]"\n', [["a, b", "c"], ["d"]]),
    "a quoted caption over two lines": (
        "t.csv",
        'image,caption\n0.jpg,"a dog\nand a cat, too"\n1.jpg,"b\nc, d"\n',
        [["a dog\nand a cat, too"], ["b\nc, d"]],
    ),
    "a row for each caption": ("t.csv", "image,caption\n0.jpg,a\n1.jpg,c\n0.jpg,b\n", [["a", "b"], ["c"]]),
    "lists in JSON lines": (
        "t.jsonl",
        '{"image":"0.jpg","caption":["a",null]}\n{"image":"1.jpg","caption":"b"}\n',
        [["a"], ["b"]],
    ),
    "half a character": (
        "t.jsonl",
        '{"image":"0.jpg","caption":"a\\ud83d"}\n{"image":"1.jpg","caption":"b"}\n',
        [["a?"], ["b"]],
    ),
    "text in brackets": ("t.csv", "image,caption\n0.jpg,[a dog] runs\n1.jpg,(b)\n", [["[a dog] runs"], ["(b)"]]),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_captions(load_captions, folder: Path, case: str):
    name, content, expected = CAPTIONS[case]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    data = load_captions(source="table", path=str(folder / name), split=UNCUT)
    read = [[text for text in row if text] for row in data.splits["train"]["captions"]]
    assert read == expected
    assert [bad.row for bad in data.bad_examples if "caption" not in bad.reason] == []


def test_a_written_list_that_reads_two_ways_is_one_bad_row(load_captions, folder: Path):
    (folder / "t.csv").write_text("image,caption\n0.jpg,\"['a', 'b' 'c']\"\n1.jpg,d\n2.jpg,e\n")
    data = load_captions(source="table", path=str(folder / "t.csv"), split=UNCUT, on_bad_row="skip")
    assert [list(row) for row in data.splits["train"]["captions"]] == [["d"], ["e"]]
    assert [(bad.row, "cannot be read for certain" in bad.reason) for bad in data.bad_examples] == [(1, True)]


def test_images_by_content_or_path_row_by_row(section, folder: Path, encode):
    images = [{"bytes": encode("blue") if n % 2 else None, "path": f"{n}.jpg"} for n in range(ROWS)]
    pq.write_table(pa.table({"image": images, "label": AB}), folder / "t.parquet")
    data = load_data(section(source="table", path=str(folder / "t.parquet"), split=UNCUT), task="image-classification")
    assert data.num_rows("train") == ROWS and data.bad_examples == []


@pytest.mark.parametrize("follow_links", [False, True])
def test_a_folder_of_the_hubs_cache(section, folder: Path, follow_links: bool):
    """Each file is a link to a blob beside the snapshot, as `snapshot_download` leaves it."""
    blobs, snapshot = folder / "hub" / "blobs", folder / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    for number in range(12):
        kind = snapshot / AB[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / f"{number}.jpg", blobs / f"x{number}")
        os.symlink(f"../../../blobs/x{number}", kind / f"{number}.jpg")
    values = section(source="image_folder", path=str(snapshot), split=UNCUT, follow_links=follow_links)
    if follow_links:
        data = load_data(values, task="image-classification")
        assert (data.label_names, data.num_rows("train"), data.bad_examples) == (["a", "b"], 12, [])
    else:
        with pytest.raises(InputError, match="follow_links"):
            load_data(values, task="image-classification")
