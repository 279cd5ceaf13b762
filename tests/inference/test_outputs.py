"""What a job writes, every reader reads back: Python's csv, pandas, datasets and mmhf."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmhf.data.readers import read_table
from mmhf.inference.outputs import open_writer, passed_columns

TRICKY = [
    "",
    "a,b",
    'say "so"',
    '"',
    "two\nlines",
    "a\rb",
    "a\r\nb",
    " blanks ",
    "a;b",
    "a\tb",
    "a|b",
    "=1+1",
    "'",
    "#",
]
TRICKY += [
    "\u2028",
    "\x85",
    "\ufeffmark",
    "\\",
    "\\n",
    "001",
    "1e5",
    "NULL",
    "ünïcødé",
    "e\u0301",
    "👩‍🚀",
    "-",
    "\x1c",
    "\x0b",
]
TEXTS = st.one_of(
    st.sampled_from(TRICKY),
    st.lists(st.sampled_from([*TRICKY, "a"]), max_size=4).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, table: pa.Table, **options: bool) -> Path:
    writer = open_writer(path, table.schema, suffix=path.suffix, **options)
    for start in range(0, len(table), 3):
        writer.write_table(table.slice(start, 3))
    writer.close()
    return path


def table_of(rows: Sequence[Sequence[str | None]]) -> pa.Table:
    return pa.table({f"c{at}": pa.array(column, pa.string()) for at, column in enumerate(zip(*rows, strict=True))})


@SETTINGS
@given(rows=st.lists(st.tuples(TEXTS, TEXTS, st.none() | TEXTS), min_size=1, max_size=8))
@pytest.mark.slow
def test_every_reader_of_csv_reads_the_same_cells(rows: list[tuple[str | None, ...]], tmp_path: Path) -> None:
    path = write(tmp_path / "out.csv", table_of(rows))
    wanted = [[cell or "" for cell in row] for row in rows]
    with path.open(encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream, strict=True)) == [["c0", "c1", "c2"], *wanted]
    frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    assert frame.to_numpy().tolist() == wanted
    ours = read_table(path)
    assert not ours.malformed
    cells = [list(row) for row in zip(*map(ours.values, ours.columns), strict=True)]
    assert cells == [[cell or None for cell in row] for row in rows]


def test_datasets_reads_the_same_cells(tmp_path: Path) -> None:
    rows = [(text, other, None) for text, other in zip(TRICKY, reversed(TRICKY), strict=True)]
    path = write(tmp_path / "out.csv", table_of(rows))
    features = datasets.Features({name: datasets.Value("string") for name in ("c0", "c1", "c2")})
    read = datasets.Dataset.from_csv(
        str(path), features=features, keep_default_na=False, cache_dir=str(tmp_path / "cache")
    )
    assert [(row["c0"], row["c1"]) for row in read] == [row[:2] for row in rows]


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@SETTINGS
@given(
    columns=st.dictionaries(st.text(max_size=4), st.lists(ANYTHING, min_size=3, max_size=3), min_size=1, max_size=3)
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.slow
def test_whatever_json_holds_passes_through(suffix: str, columns: dict[str, list[Any]], tmp_path: Path) -> None:
    table = passed_columns(columns, ["label"], nested=suffix == ".parquet")
    assert len(table) == 3 and len(set(table.column_names)) == len(columns)
    table = table.append_column("label", pa.array(["a", "b", "c"]))
    path = write(tmp_path / f"out{suffix}", table)
    if suffix == ".parquet":
        assert pq.read_table(path).equals(table)
    else:
        with path.open(encoding="utf-8", newline="") as stream:
            read = list(csv.reader(stream, strict=True))
        assert read[0] == table.column_names and [row[-1] for row in read[1:]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("values", "passed"),
    [
        ([2**64, 2**70, 3], [str(2**64), str(2**70), "3"]),
        ([1, "a", None], ["1", "a", None]),
        ([True, 2, [3]], ["true", "2", "[3]"]),
        (["\ud83d", "a", None], ["\\ud83d", "a", None]),
        ([{"a": "\udc00"}, None, None], ['{"a": "\\udc00"}', None, None]),
        ([{}, {}, {}], ["{}", "{}", "{}"]),
        ([[[[1]]], [["a"]], []], ["[[[1]]]", '[["a"]]', "[]"]),
        ([2**60 + 1, 0.5, 1], [str(2**60 + 1), "0.5", "1"]),
    ],
)
def test_what_arrow_cannot_hold_is_text(values: list[Any], passed: list[str | None]) -> None:
    assert passed_columns({"a": values}, [], nested=True).column("a").to_pylist() == passed


def test_nested_values_stay_what_they_are(tmp_path: Path) -> None:
    values = [{"a": 1}, {"b": [2]}]
    assert passed_columns({"a": values}, [], nested=False).column("a").to_pylist() == list(map(json.dumps, values))
    assert pa.types.is_struct(passed_columns({"a": values}, [], nested=True).column("a").type)


def test_a_nesting_without_end_passes_through(tmp_path: Path) -> None:
    value: Any = 1
    for _ in range(200):
        value = [value]
    table = passed_columns({"a": [value]}, [], nested=True)
    assert pq.read_table(write(tmp_path / "out.parquet", table)).equals(table)


def test_names_that_are_taken_or_no_text_are_changed() -> None:
    columns = {"label": [1], "input_label": [2], "\ud800": [3], "image": [b"bytes"]}
    assert passed_columns(columns, ["label"], nested=True).column_names == [
        "input_input_label",
        "input_label",
        "\\ud800",
    ]


def test_formulas_are_defused_on_request(tmp_path: Path) -> None:
    texts = ["=cmd|' /C calc'!A0", "@SUM(A1)", "+a", "-a", " =1", "\t=1", "\uff1d1", "-5", "+1.5e-3", "1,000", "a=b"]
    table = pa.table({"=head": texts, "n": [-1.5] * len(texts)})
    for defuse in (False, True):
        path = write(tmp_path / "out.csv", table, **({"defuse_formulas": True} if defuse else {}))
        with path.open(encoding="utf-8", newline="") as stream:
            (head, _), *rows = csv.reader(stream, strict=True)
        assert [row[0] for row in rows] == [f"'{text}" if defuse and at < 7 else text for at, text in enumerate(texts)]
        assert head == ("'=head" if defuse else "=head") and {row[1] for row in rows} == {"-1.5"}


def test_embeddings_are_stored_uncompressed(tmp_path: Path) -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 3000, pa.float32()), 1000)
    path = write(tmp_path / "out.parquet", pa.table({"a": ["x" * 99] * 3, "e": lists, "s": [{"t": "y"}] * 3}))
    group = pq.ParquetFile(path).metadata.row_group(0)
    found = {group.column(at).path_in_schema: group.column(at).compression for at in range(group.num_columns)}
    assert found == {"a": "SNAPPY", "e.list.element": "UNCOMPRESSED", "s.t": "SNAPPY"}
