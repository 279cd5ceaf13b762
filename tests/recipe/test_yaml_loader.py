from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.errors import InputError
from mmhf.recipe.yaml_loader import dump_yaml, load_yaml, parse_yaml

_TEXT = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.sampled_from(
        ["2e-5", "no", "on", "0o17", "1_000", "1:30", "null", "~", "", "true", ".inf", "2026-01-01", "<<"]
    ),
)
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False), _TEXT)
_NESTED = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=12
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1E3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("+12", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1.10", "1.10"),
        ("!!float 3", 3.0),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}", "x.yaml").plain()["a"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text_as_written() -> None:
    assert parse_yaml("{0: a, true: b, 1.0: c, ~: d}", "x.yaml").plain() == {
        "0": "a",
        "true": "b",
        "1.0": "c",
        "~": "d",
    }


def test_each_value_knows_the_line_of_its_key() -> None:
    tree = parse_yaml("a: 1\nb:\n  c:\n    - 2\n    - d: 3\n\ne: >\n  long\n  text\nf: 4\n", "x.yaml")
    places = {
        path: tree.find(path).origin.place  # type: ignore[union-attr]
        for path in [("a",), ("b",), ("b", "c"), ("b", "c", 0), ("b", "c", 1, "d"), ("e",), ("f",)]
    }
    assert [place.removeprefix("x.yaml:") for place in places.values()] == ["1", "2", "3", "4", "5", "7", "10"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: the key 'a' appears twice, first at x.yaml:1"),
        ("a:\n  '0': 1\n  0: 2\n", "x.yaml:3: the key '0' appears twice"),
        ("a: 1\nb: [1, 2\nc: 3\n", "x.yaml:3: not YAML: while parsing a flow sequence"),
        ("a: 1\n\tb: 2\n", "x.yaml:2: not YAML"),
        ("a: 1\nb: \x07\n", "x.yaml:2: not YAML: character U+0007 is not allowed"),
        ("a: !!python/object:os.system x\n", "x.yaml:1: the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: !mine {b: 1}\n", "x.yaml:1: the tag '!mine'"),
        ("a: !!int x\n", "x.yaml:1: 'x' cannot be read as int"),
        ("a: &b [*b]\n", "x.yaml:1: an alias contains itself"),
        ("? [a]\n: b\n", "x.yaml:1: a key must be text"),
        ('a: "\\UFFFFFFFF"\n', "x.yaml:1: not YAML"),
        ('a: "\\ud800"\n', "x.yaml:1: half of a surrogate pair is not text"),
        ("a: " + "9" * 5000, "x.yaml:1: '9999"),
        ("a: " + "[" * 100 + "]" * 100, "x.yaml:1: nested too deeply"),
        ("[" * 5000, "x.yaml:1: nested too deeply"),
        ("a: 1\n--- \nb: 2\n", "x.yaml:2: not YAML: expected a single document"),
        (
            "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 10)}]\n" for i in range(9)),
            "aliases expand to more than 100000 values",
        ),
    ],
)
@pytest.mark.slow
def test_what_is_not_yaml_is_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_yaml(text, "x.yaml")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_aliases_copy_values() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x\n", "x.yaml").plain() == {"a": {"b": 1}, "c": {"b": 1}}


def test_files_are_utf8_with_or_without_byte_order_mark(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_bytes("a: ü".encode("utf-8-sig"))
    bad.write_bytes("a: ü".encode("latin-1"))
    assert load_yaml(good, "good.yaml").plain() == {"a": "ü"}
    with pytest.raises(InputError, match=r"bad\.yaml: not UTF-8 text .* at byte 3"):
        load_yaml(bad, "bad.yaml")


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_TEXT, _NESTED, max_size=4))
@pytest.mark.slow
def test_any_nested_mapping_round_trips(values: dict[str, object]) -> None:
    assert parse_yaml(dump_yaml(values), "x.yaml").plain() == values


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(_TEXT, _TEXT, max_size=4))
def test_what_we_write_reads_the_same_as_yaml_1_1(values: dict[str, str]) -> None:
    assert yaml.safe_load(dump_yaml(values)) == values


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-{}[]&*!|>'\"%@#?,~\n 1e.\\u"), max_size=40))
def test_no_text_crashes_the_parser(text: str) -> None:
    try:
        parse_yaml(text, "x.yaml")
    except InputError as error:
        assert str(error).startswith("x.yaml:")
