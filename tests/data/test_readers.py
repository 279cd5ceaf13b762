from __future__ import annotations

import json

import pandas as pd
import pyarrow as pa
import pytest

from mmhf.conventions import as_text
from mmhf.data.readers import read_table
from mmhf.errors import InputError


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_each_format_gives_the_same_columns(tmp_path, ending):
    frame = pd.DataFrame({"id": ["nan", "1e5", "007"], "text": ["a, b", "c\td", None], "other": ["x", "y", "z"]})
    path = tmp_path / f"table.{ending}"
    write = {
        "csv": lambda: frame.to_csv(path, index=False),
        "tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(path),
    }
    write[ending]()
    table = read_table(path, ["id", None, "text"], optional=["absent"])
    assert {name: table.values(name) for name in table.columns} == {
        "id": ["nan", "1e5", "007"],
        "text": ["a, b", "c\td", None],
        "absent": [None] * 3,
    }
    assert table.rows == [1, 2, 3]
    assert table.malformed == {}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_missing_column_names_the_nearest(tmp_path, ending):
    path = tmp_path / f"table.{ending}"
    frame = pd.DataFrame({"image": ["a"], "label": ["b"]})
    {"csv": frame.to_csv, "jsonl": lambda p: frame.to_json(p, orient="records", lines=True)}.get(
        ending, frame.to_parquet
    )(path)
    with pytest.raises(InputError) as caught:
        read_table(path, ["image", "lable"])
    assert f"{path}: no column 'lable'; did you mean label?" in str(caught.value)


def test_broken_json_lines_are_named_by_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n\n{broken\n[1]\n" + json.dumps({"text": "b"}) + "\n")
    table = read_table(path, ["text"])
    assert table.rows == [1, 3, 4, 5]
    assert table.values("text") == ["a", None, None, "b"]
    assert set(table.malformed) == {1, 2}
    assert "not JSON" in table.malformed[1] and "not a JSON object" in table.malformed[2]


def test_files_that_cannot_be_tables(tmp_path):
    with pytest.raises(InputError, match="unknown kind of table"):
        read_table(tmp_path / "t.xlsx", [])
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "t.csv", [])
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="not a parquet file") as caught:
        read_table(tmp_path / "t.parquet", [])
    assert "\n" not in str(caught.value)


def test_selecting_rows_keeps_numbers_and_reasons(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3\n5,6\n")
    table = read_table(path, ["a"]).select([2, 1])
    assert (table.values("a"), table.rows, table.malformed) == (["5", None], [3, 2], {1: "1 fields instead of 2"})


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_texts_stay_in_arrow_and_mixed_values_as_they_are(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    frame = pd.DataFrame({"text": [f"text {number}" for number in range(5000)]})  # more than one batch
    {
        "csv": lambda p: frame.to_csv(p, index=False),
        "jsonl": lambda p: frame.to_json(p, orient="records", lines=True),
    }.get(ending, frame.to_parquet)(path)
    table = read_table(path)
    assert pa.types.is_string(table.columns["text"].type)
    assert table.value("text", 4999) == table.select([4999]).value("text", 0) == "text 4999"
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"a": 1}\n{"a": "1"}\n{"a": 2.0}\n')
    assert read_table(path).columns["a"] == [1, "1", 2.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1.0, "1"),
        (0.5, "0.5"),
        (True, "true"),
        (" a ", "a"),
        (" ", None),
        (None, None),
        (float("nan"), None),
    ],
)
def test_values_as_text(value, text):
    assert as_text(value) == text
