from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.errors import InputError
from mmhf.recipe.fusion_recipe import FusionRecipe
from mmhf.recipe.overrides import apply_overrides, parse_override
from mmhf.recipe.yaml_loader import parse_yaml

RECIPE = """
task: image-text-classification
data: {source: sample, augment: {rotation: 5, color_jitter: {hue: 0.1}}}
training: {learning_rate: 2e-5}
stages:
- {name: a, epochs: 1, learning_rate: 1e-3}
- {name: b, epochs: 2}
"""


def apply(*overrides: str, text: str = RECIPE) -> Any:
    tree = parse_yaml(text, "r.yaml")
    return apply_overrides(tree, [parse_override(override) for override in overrides], FusionRecipe).plain()


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.learning_rate=1e-4", "training.learning_rate", 1e-4),
        ("stages.0.epochs=2", "stages.0.epochs", 2),
        ("model.fusion.hidden_dims=[128, 64]", "model.fusion.hidden_dims", [128, 64]),
        ("model.fusion={dropout: 0.1}", "model.fusion", {"dropout": 0.1}),
        ("training.bf16=true", "training.bf16", True),
        ("model.vision.backbone=no", "model.vision.backbone", "no"),
        ("data.limit=null", "data.limit", None),
        ("data.limit=", "data.limit", None),
        ("data.limit = 5", "data.limit", 5),
        ("init_from=a: b # c", "init_from", "a: b # c"),
        ("init_from=a=b", "init_from", "a=b"),
        ("init_from='1'", "init_from", "1"),
        ('stages.0.learning_rate."vision.stages.0"=1', "stages.0.learning_rate", {"vision.stages.0": 1}),
        ("release.version=1.10", "release.version", "1.10"),
        ("training.run_name=007", "training.run_name", "007"),
        ("data.image_size=1.10", "data.image_size", 1.10),
        ("stages.2={name: c, steps: 5}", "stages.2", {"name": "c", "steps": 5}),
        ("data.augment.color_jitter=null", "data.augment.color_jitter", None),
        ("data.augment={rotation: 9}", "data.augment", {"rotation": 9, "color_jitter": {"hue": 0.1}}),
    ],
)
def test_an_override_puts_its_value_there(override: str, path: str, value: object) -> None:
    found = apply(override)
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else found[part]
    assert found == value
    assert type(found) is type(value)


def test_a_later_override_wins_and_nothing_else_changes() -> None:
    before = apply()
    after = apply("training.learning_rate=1", "training.learning_rate=2")
    assert after["training"] == {"learning_rate": 2}
    assert {**after, "training": None} == {**before, "training": None}


def test_a_list_that_is_absent_starts_at_its_first_item() -> None:
    stages = apply("stages.0.name=a", "stages.0.epochs=3", text="task: image-text-classification\n")["stages"]
    assert stages == [{"name": "a", "epochs": 3}]


@pytest.mark.parametrize(
    ("override", "path", "left"),
    [("~data.augment.rotation", ("data", "augment"), {"color_jitter": {"hue": 0.1}}), ("~stages", ("stages",), None)],
)
def test_a_tilde_removes(override: str, path: tuple[str, ...], left: object) -> None:
    found = apply(override)
    for part in path:
        found = found.get(part)
    assert found == left


def test_a_tilde_removes_a_list_item() -> None:
    assert [stage["name"] for stage in apply("~stages.0")["stages"]] == ["b"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training", "override training: write KEY=VALUE, or ~KEY to remove a key"),
        ("=1", "override =1: '' is not a key"),
        ("a..b=1", "override a..b=1: 'a..b' is not a key"),
        ("a.=1", "override a.=1: 'a.' is not a key"),
        ("+a.b=1", "override +a.b=1: new keys need no +; write a.b=VALUE"),
        ("++a.b=1", "write a.b=VALUE"),
        ("a=[1", "override a=[1: not YAML"),
        ("a={x: 1, x: 2}", "override a={x: 1, x: 2}: the key 'x' appears twice"),
        ("a=" + "9" * 5000, "the number is too long"),
        (".".join("a" * 40) + "=1", "no key has 40 parts"),
        ("a=1\nb=2", "an override is one line"),
        ("a=\udcff", "not UTF-8 text"),
        ("stages.3.epochs=1", "override stages.3.epochs=1: stages has 2 items, counted from 0, so there is no 3"),
        ("stages.all.epochs=1", "'all' is not one of its indices"),
        ("~stages.2", "has 2 items"),
        ("~data.augment.rotatoin", "there is no data.augment.rotatoin to remove; did you mean rotation?"),
        ("~training.learning_rate.x", "there is no training.learning_rate.x to remove"),
        ("extends=x.yaml", "`extends` is read before overrides"),
    ],
)
def test_what_cannot_be_applied_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        apply(override)
    assert message in str(raised.value)
    assert str(raised.value).startswith("override ")
    assert "\n" not in str(raised.value)


_ALPHABET = st.characters() | st.sampled_from("abstges.=~+\"'[]{}:,0129# ")
_KEYS = r"[~+]?(data|stages|training|task)(\.[a-z0-9\"']*){0,3}"
_NEAR_MISSES = st.from_regex(_KEYS + r"=?[\[\{\"']?[a-z0-9:, ]*[\]\}\"']?", fullmatch=True)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(_ALPHABET, max_size=30) | _NEAR_MISSES, min_size=1, max_size=3))
@pytest.mark.slow
def test_no_override_crashes(overrides: list[str]) -> None:
    try:
        apply(*overrides)
    except InputError as error:
        assert str(error).startswith("override ")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20))
def test_quoted_text_arrives_as_it_is(text: str) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    assert apply(f"init_from={quoted}")["init_from"] == text


def test_an_empty_mapping_clears(load):
    text = "task: image-text-classification\ndata: {source: clinical, path: d, tables: {ddi: {table: t, images: i}}, "
    text += "filters: {where: {qc: x}}}\n"
    assert load(text).recipe.data.filters.where == {"qc": "x"}
    assert load(text, "data.filters.where={}").recipe.data.filters.where == {}
    assert set(load(text, "data.filters.where={sex: male}").recipe.data.filters.where) == {"qc", "sex"}
