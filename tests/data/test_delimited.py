from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.data.delimited import read_delimited, read_standard, read_text
from mmhf.errors import InputError


def read(tmp_path, text: str, separator: str = "\t"):
    path = tmp_path / "table"
    path.write_bytes(text.encode())
    header, batches = read_delimited(path, separator, lambda header: list)
    return header, [record for batch in batches for record in batch]


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
field = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(field, min_size=3, max_size=3), max_size=6), st.sampled_from([",", "\t"]))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows, separator):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, lineterminator="\n")
    # An id in front keeps rows from being blank; a text that contains whole rows is what no reader could tell apart.
    rows = [[f"id{number}", *row] for number, row in enumerate(rows) if not any("\n" in value for value in row)]
    writer.writerow(["id", "a", "b", "c"])
    writer.writerows(rows)
    header, records = read(tmp_path_factory.mktemp("csv"), buffer.getvalue(), separator)
    assert header == ["id", "a", "b", "c"]
    assert records == rows


def test_quotes_as_pandas_writes_them(tmp_path):
    header, records = read(tmp_path, 'id\ttitle\n1\t"he said ""no"""\n2\t5" nails\n3\t"two\nlines"\n4\tlast\n')
    assert header == ["id", "title"]
    assert records == [["1", 'he said "no"'], ["2", '5" nails'], ["3", "two\nlines"], ["4", "last"]]


def test_a_lone_quote_swallows_nothing(tmp_path):
    _, records = read(tmp_path, 'id\ttitle\tlabel\n1\t"begins so\t0\n2\tplain\t1\n3\tends so"\t0\n4\t"a" b\t1\n')
    assert records == [["1", '"begins so', "0"], ["2", "plain", "1"], ["3", 'ends so"', "0"], ["4", '"a" b', "1"]]


def test_quoted_fields_that_span_lines(tmp_path):
    text = 'id,text,label\n1,"first\n\nthird, with ""quotes""",x\n2,plain,y\n'
    _, records = read(tmp_path, text, ",")
    assert records == [["1", 'first\n\nthird, with "quotes"', "x"], ["2", "plain", "y"]]


def test_a_last_field_that_spans_lines(tmp_path):
    _, records = read(tmp_path, 'id,text\n1,"first\nsecond"\n2,"a ""b""\n"\n3,c\n', ",")
    assert records == [["1", "first\nsecond"], ["2", 'a "b"\n'], ["3", "c"]]


def test_a_row_with_too_few_or_many_fields_is_named(tmp_path):
    _, records = read(tmp_path, "a,b\n1\n1,2,3\n\n4,5\n", ",")
    assert records == ["1 fields instead of 2", "3 fields instead of 2", ["4", "5"]]


def test_ends_of_lines_marks_and_odd_separators(tmp_path):
    header, records = read(tmp_path, "\ufeffid,text\r\n1,a\u2028b\x0cc\r\n2,\r\n", ",")
    assert header == ["id", "text"]
    assert records == [["1", "a\u2028b\x0cc"], ["2", ""]]


def test_what_cannot_be_read_at_all(tmp_path):
    with pytest.raises(InputError, match="header"):
        read(tmp_path, "")
    (tmp_path / "binary").write_bytes(b"id,text\n1,caf\x81\xff\n")
    with pytest.raises(InputError, match=r"binary:2: the file is not UTF-8"):
        read_delimited(tmp_path / "binary", ",", lambda header: list)
    with pytest.raises(InputError, match="cannot read"):
        read_delimited(tmp_path / "absent", ",", lambda header: list)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2), max_size=8
    ),
    st.sampled_from([",", "\t"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_every_file_of_the_standard_is_read_as_the_csv_module_reads_it(
    tmp_path_factory, rows, separator, line_end, encoding
):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([["a", "b"], *rows])
    path = tmp_path_factory.mktemp("csv") / "table"
    path.write_bytes(buffer.getvalue().encode(encoding))
    header, batches = read_delimited(path, separator, lambda header: list)
    assert [header, *(record for batch in batches for record in batch)] == [["a", "b"], *rows]
    table = read_standard(path, separator)
    assert table is not None
    assert [list(row.values()) for row in table.to_pylist()] == [[value or None for value in row] for row in rows]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('ab",\n'), max_size=30))
def test_what_is_read_fast_is_what_the_csv_module_reads(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("csv") / "table"
    path.write_text("a,b\n" + text)
    table = read_standard(path, ",")
    if table is not None:
        strict = csv.reader(io.StringIO("a,b\n" + text, newline=""), strict=True)
        rows = [[value or None for value in row] for row in strict if row][1:]
        assert [list(row.values()) for row in table.to_pylist()] == rows


def test_a_file_of_the_standard_is_not_repaired(tmp_path):
    _, records = read(tmp_path, 'image,caption\n0.jpg,"a dog in picture 0\nand a cat, too"\n1.jpg,"x\ny, z"\n', ",")
    assert records == [["0.jpg", "a dog in picture 0\nand a cat, too"], ["1.jpg", "x\ny, z"]]
    _, records = read(tmp_path, f'a,b\n1,"{"word, " * 30_000}"\n2,x\n', ",")
    assert [len(record[1]) for record in records] == [180_000, 1]


def test_one_bad_line_leaves_quoted_lines_alone_and_is_noted(tmp_path):
    _, records = read(tmp_path, 'id,text\n1,"two\nlines, here"\n2\n3,"a"\n', ",")
    assert records == [["1", "two\nlines, here"], "1 fields instead of 2", ["3", "a"]]
    _, records = read(tmp_path, 'id\ttitle\n1\t"lone\n2\tplain\n')
    assert records == [["1", '"lone'], ["2", "plain"]]
    assert "quotes" in records[0].note and not hasattr(records[1], "note")


def test_separators_and_encodings_are_found_by_looking(tmp_path):
    path = tmp_path / "table"
    for text, encoding in (("id;caf\u00e9\n1;a, b\n", "cp1252"), ("id\tcaf\u00e9\n1\ta, b\n", "utf-16")):
        path.write_bytes(text.encode(encoding))
        header, batches = read_delimited(path, None, lambda header: list)
        assert (header, batches) == (["id", "caf\u00e9"], [[["1", "a, b"]]])


def test_a_column_that_is_named_twice(tmp_path):
    with pytest.raises(InputError, match="two columns are named 'a'; rename one"):
        read(tmp_path, "a,b,a\n1,2,3\n", ",")


def test_the_encoding_of_a_file_is_named_once(tmp_path, caplog):
    (tmp_path / "t.csv").write_bytes("id,text\n1,caf\u00e9\n".encode("cp1252"))
    for _ in range(2):
        assert "caf\u00e9" in read_text(tmp_path / "t.csv")
    assert len(caplog.messages) == 1 and "t.csv:2: the file is not UTF-8 but cp1252" in caplog.text
