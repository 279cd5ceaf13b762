from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mmhf.data.columns import text_array
from mmhf.data.filters import blank_placeholders, filter_rows
from mmhf.data.table import extra_column
from mmhf.errors import InputError
from mmhf.recipe.row_sections import FiltersSection

ROWS = [
    # dataset, source, label, text, qc, tone
    ("fitz", "atlas", "acne", None, None, "1"),
    ("fitz", "atlas", "acne", None, "good", "-1"),
    ("fitz", "dermnet", "eczema", "dry", "bad", "6.0"),
    ("derm1m", "pubmed", "acne", "red", None, "3"),
    ("derm1m", "youtube", "eczema", "itchy", None, None),
    ("derm1m", "youtube", "rare", "odd", "good", "x"),
]
NAMES = ("dataset", "source", "label", "text", "qc", "tone")


def table(rows=ROWS, malformed=None) -> pa.Table:
    values = {name: text_array(list(column)) for name, column in zip(NAMES, zip(*rows, strict=True), strict=True)}
    faults = [(malformed or {}).get(position) for position in range(len(rows))]
    columns = {"label": values["label"], "text": values["text"], "fault": pa.array(faults, pa.string())}
    extras = {extra_column(name): column for name, column in values.items()}
    return pa.table({**columns, **extras, "split": pa.nulls(len(rows), pa.string())})


def left(filters, source=None, label_of=None):
    source = table() if source is None else source
    positions, steps = filter_rows(source, FiltersSection(**filters), origin="t.csv", label_of=label_of)
    return (positions + 1).tolist(), steps


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ({"datasets": ["fitz"]}, [1, 2, 3]),
        ({"sub_sources": {"derm1m": ["pubmed"]}}, [1, 2, 3, 4]),
        ({"datasets": ["derm1m"], "sub_sources": {"derm1m": ["youtube"]}}, [5, 6]),
        ({"has_text": True}, [3, 4, 5, 6]),
        ({"has_text": False}, [1, 2]),
        ({"where": {"qc": ["good", None]}}, [1, 2, 4, 5, 6]),
        ({"where": {"qc": "good"}}, [2, 6]),
        ({"where": {"qc": {"exclude": [None, "bad"]}}}, [2, 6]),
        ({"where": {"tone": {"min": 1}}}, [1, 3, 4]),
        ({"where": {"tone": {"min": 0, "max": 3, "or_missing": True}}}, [1, 4, 5]),
        ({"where": {"tone": 6}}, [3]),
        ({"where": {"tone": "6"}}, []),
        ({"min_samples_per_label": 2}, [1, 2, 3, 4, 5]),
        ({"datasets": ["fitz"], "min_samples_per_label": 2}, [1, 2]),
        ({"fraction": 0.4}, None),
    ],
)
def test_each_filter_keeps_what_it_says(filters, rows):
    if rows == []:
        with pytest.raises(InputError, match=r"t.csv: data.filters leave no row.*6 \(all\) → 0 \(where.tone: 6\)"):
            left(filters)
    elif rows is None:
        kept, _ = left(filters)
        assert Counter(ROWS[row - 1][2] for row in kept) == {"acne": 2, "eczema": 1, "rare": 1}
        assert kept == left(filters)[0] == sorted(kept)
    else:
        assert left(filters)[0] == rows


def test_steps_count_what_each_filter_left_in_order():
    _, steps = left({"min_samples_per_label": 2, "has_text": True, "where": {"tone": {"min": 0, "or_missing": True}}})
    assert [tuple(step) for step in steps] == [
        ("all", 6),
        ("where.tone: min 0, or_missing true", 4),
        ("has_text: true", 3),
        ("min_samples_per_label: 2", 2),
    ]
    assert left({})[1] == []


def test_merged_labels_are_counted_as_one():
    assert left({"min_samples_per_label": 3}, label_of={"rare": "eczema"})[0] == [1, 2, 3, 4, 5, 6]


def test_rows_that_cannot_be_read_stay_to_be_judged():
    broken = [*ROWS, (None,) * 6]
    rows, steps = left({"datasets": ["fitz"]}, table(broken, {6: "3 fields instead of 6"}))
    assert rows == [1, 2, 3, 7]
    assert steps[-1].rows == 4


def test_data_sets_and_sub_sources_that_are_in_no_row():
    with pytest.raises(InputError, match="data.filters.datasets: no row has 'fits'; did you mean fitz"):
        left({"datasets": ["fits"]})
    with pytest.raises(InputError, match="sub_sources.derm1m: no row has 'atlas' .there is pubmed, youtube"):
        left({"sub_sources": {"derm1m": ["atlas"]}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"where": {"age": {"min": 3, "max": 2}}}, "min = 3 is above max = 2"),
        ({"where": {"age": {}}}, "give `min`, `max` or `exclude`"),
        ({"where": {"age": {"exclude": [None], "or_missing": True}}}, "remove one"),
        ({"datasets": ["ddi"], "sub_sources": {"derm1m": ["a"]}}, "'derm1m' is not among"),
        ({"fraction": 0.0}, "greater than 0"),
    ],
)
def test_filters_that_contradict_themselves(values, message):
    with pytest.raises(ValidationError, match=message):
        FiltersSection(**values)


def test_placeholders_are_read_as_missing():
    source = table([("a", "s", "acne", text, None, "No tone information") for text in ("no caption", "x", " N/A ", 3)])
    source = blank_placeholders(source, ["No * information", "No caption", "n/a"], keep=["label"])
    assert source["text"].to_pylist() == [None, "x", None, "3"]
    assert source[extra_column("tone")].to_pylist() == [None] * 4
    source = blank_placeholders(source, ["ac*"], keep=["label"])
    assert source["label"].to_pylist() == ["acne"] * 4
    source = blank_placeholders(source, ["a.b"])
    assert source["text"].to_pylist()[1] == "x"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("pq"), st.sampled_from("xyz")), min_size=1, max_size=60
    ),
    st.floats(0.01, 1.0),
    st.integers(1, 8),
    st.integers(0, 3),
)
def test_a_share_of_each_label_and_no_rare_label_is_left(triples, fraction, least, seed):
    source = table([(*triple, "text", None, None) for triple in triples])
    before = Counter(label for *_, label in triples)
    rows, _ = left({"fraction": fraction, "seed": seed}, source)
    drawn = Counter(triples[row - 1][2] for row in rows)
    for label, count in before.items():
        assert fraction * count - 1e-3 <= drawn[label] < fraction * count + 1
    if any(count >= least for count in drawn.values()):
        kept, _ = left({"fraction": fraction, "seed": seed, "min_samples_per_label": least}, source)
        assert Counter(triples[row - 1][2] for row in kept) == {
            label: count for label, count in drawn.items() if count >= least
        }
