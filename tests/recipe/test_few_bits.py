"""Recipes whose frozen encoders have few bits: what they may say, in every family and of every encoder."""

from __future__ import annotations

from typing import Any

import pytest

from mmhf.errors import InputError
from mmhf.recipe.resolve import ResolvedRecipe, recipe_from_dict

ENCODERS = (
    ("image-classification", "vision"),
    ("image-text-classification", "vision"),
    ("image-text-classification", "text"),
    ("contrastive", "text"),
    ("image-captioning", "vision"),
    ("image-captioning", "language"),
)
RELEASE = {"repo": "x", "version": "1.0"}


def load(task: str, encoder: str, *, model: Any = None, few: Any = None, **values: Any) -> ResolvedRecipe:
    """A recipe with an encoder of few bits that stays frozen."""
    section = {"backbone": "some/backbone", "quantization": {"bits": 8}, **(few or {})}
    freezing = {} if "stages" in values else {f"freeze_{encoder}": True}
    sections = {"model": {encoder: section, **freezing, **(model or {})}, "data": {"source": "sample"}}
    return recipe_from_dict({"task": task, **sections, **values}, name="r")


def stages(*train: str) -> list[dict[str, Any]]:
    return [{"name": "a", "epochs": 1, "train": ["!vision", "!text", "!language"]}, {**STAGE, "train": list(train)}]


STAGE = {"name": "b", "epochs": 1}


@pytest.mark.parametrize(("task", "encoder"), ENCODERS)
@pytest.mark.parametrize(
    "train",
    [
        ["all"],
        ["head", "NAME"],
        ["NAME:last 2"],
        ["NAME.layers.*"],
        ["NAME.final", "head"],
        ["!head"],
        ["*"],
        ["all", "!NAME:last 2"],
        ["all", "!NAME.lora"],
        ["all", "!NAME", "NAME.final"],
    ],
    ids=str,
)
def test_a_stage_that_trains_them_is_refused(task: str, encoder: str, train: list[str]) -> None:
    chosen = [selector.replace("NAME", encoder) for selector in train]
    problem = rf"stages\.1\.train: trains the weights of {encoder}, which have 8 bits for good; name other groups"
    with pytest.raises(InputError, match=problem):
        load(task, encoder, stages=stages(*chosen))


@pytest.mark.parametrize(("task", "encoder"), ENCODERS)
@pytest.mark.parametrize(
    "train",
    [["head"], ["all", "!NAME"], ["!NAME"], ["!NAME", "NAME.lora:last 2"], ["NAME.lora"], ["*.layers.5"]],
    ids=str,
)
def test_a_stage_that_leaves_them_alone_is_allowed(task: str, encoder: str, train: list[str]) -> None:
    """As far as words tell: of `*.layers.5`, a plan knows."""
    chosen = [selector.replace("NAME", encoder) for selector in train]
    resolved = load(task, encoder, stages=stages(*chosen), model={"lora": {"groups": [encoder]}})
    assert resolved.recipe.model.few_bits()[encoder].bits == 8


@pytest.mark.parametrize(("task", "encoder"), ENCODERS)
def test_without_stages_the_encoder_is_frozen(task: str, encoder: str) -> None:
    assert load(task, encoder).recipe.model.few_bits().keys() == {encoder}
    problem = rf"model\.freeze_{encoder}: trains the weights of {encoder}, which have 8 bits for good; set it to true"
    with pytest.raises(InputError, match=problem):
        load(task, encoder, model={f"freeze_{encoder}": False})


@pytest.mark.parametrize(("task", "encoder"), ENCODERS)
def test_low_rank_changes_stay_apart(task: str, encoder: str) -> None:
    lora = {"groups": [encoder]}
    assert load(task, encoder, model={"lora": lora}, release={**RELEASE, "lora": "keep"})
    with pytest.raises(InputError, match=rf"release\.lora: the weights of {encoder} have 8 bits, and no room.*keep"):
        load(task, encoder, model={"lora": lora}, release={**RELEASE, "lora": "merge"})
    with pytest.raises(InputError, match=rf"model\.lora\.dora: reads the weights of {encoder}.*set it to false"):
        load(task, encoder, model={"lora": {**lora, "dora": True}})


@pytest.mark.parametrize("groups", [["vision"], ["!text"], ["vision", "text", "!text"], ["vision.*", "!vision.stem"]])
def test_changes_of_another_encoder_may_be_what_they_like(groups: list[str]) -> None:
    lora = {"groups": groups, "dora": True}
    assert load("image-text-classification", "text", model={"lora": lora}, release={**RELEASE, "lora": "merge"})


@pytest.mark.parametrize(
    "groups", [["!vision"], ["!vision.stem"], ["!vision", "!text:last 2"], ["text", "!text.final"]]
)
def test_what_exclusions_leave_of_an_encoder_is_changed(groups: list[str]) -> None:
    lora = {"groups": groups}
    model = load("image-text-classification", "text", model={"lora": lora}).recipe.model
    assert "text" in model.adapted_encoders() and "text.lora" in model.trained_by_default()
    with pytest.raises(InputError, match=r"model\.lora\.dora: reads the weights of text"):
        load("image-text-classification", "text", model={"lora": {**lora, "dora": True}})


@pytest.mark.parametrize(("task", "encoder"), ENCODERS)
@pytest.mark.parametrize(
    ("few", "problem"),
    [
        ({"pretrained": False}, "for weights that were pretrained and stay frozen; remove it"),
        ({"quantization": {"bits": 3}}, r"quantization\.bits: must be 8 or 4; got 3"),
        ({"quantization": {"bits": 8, "library": "bitsandbytes"}}, "is for 4 bits, its 8 bits round the inputs, too"),
    ],
)
def test_what_they_cannot_be(task: str, encoder: str, few: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=rf"model\.{encoder}.*{problem}"):
        load(task, encoder, few=few)


def test_what_only_some_encoders_are() -> None:
    scratch = {"backbone": None}
    with pytest.raises(InputError, match=r"model\.vision: `quantization` is for weights that were pretrained"):
        load("contrastive", "vision", few=scratch)
    table = {"embeddings": "x.parquet", "pooling": "mean"}
    with pytest.raises(InputError, match=r"model\.text: with `embeddings` no text encoder is loaded; remove"):
        load("image-text-classification", "text", few=table)


def test_they_are_not_compiled() -> None:
    places = r"`model\.vision\.quantization` and `model\.text\.quantization`"
    few = {"text": {"quantization": {"bits": 4}}, "freeze_text": True}
    with pytest.raises(InputError, match=rf"training\.torch_compile: layers of few bits are not.*, or {places}"):
        load("image-text-classification", "vision", model=few, training={"torch_compile": True})
