from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mmhf.errors import InputError
from mmhf.recipe import load_recipe
from mmhf.recipe.captioner_recipe import GenerationSection

BASE: dict[str, Any] = {"task": "image-captioning", "data": {"source": "sample"}}
NEW = {"backbone": "qwen3", "pretrained": False, "tokenizer": {"vocab_size": 300}}


def _load(tmp_path: Path, values: dict[str, Any]) -> Any:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**BASE, **values}))
    return load_recipe(path, [])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"language": {"config": {"hidden_size": 8}}}}, "`config` changes the model that was pretrained"),
        ({"model": {"projector": {"kind": "transformer", "width": 10, "heads": 4}}}, "10 cannot be divided among 4"),
        ({"training": {"label_smoothing_factor": 0.1}}, "captioners have no logits to smooth"),
        ({"stages": [{"name": "a", "epochs": 1, "label_smoothing": 0.1}]}, "label_smoothing"),
        ({"model": {"freeze_language": False}, "stages": [{"name": "a", "epochs": 1}]}, "model.freeze_language"),
        ({"model": {"freeze_language": False, "lora": {"rank": 4}}}, "say in `stages` that both train"),
        ({"model": {"lora": {"groups": ["text"]}}}, "'text' is in no encoder; begin with vision or language"),
        ({"release": {"repo": "x", "version": "1.0", "lora": "merge"}}, "there is no `model.lora`"),
        ({"data": {"source": "sample", "augment": {"mixup": 0.2}}}, "mixes images and labels"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _load(tmp_path, values)


def test_a_resolved_recipe_names_every_default_and_is_valid(tmp_path: Path) -> None:
    for values in ({}, {"model": {"language": NEW}, "generation": {"num_beams": 3}}):
        resolved = _load(tmp_path, values)
        again = tmp_path / "resolved.yaml"
        again.write_text(resolved.to_yaml())
        assert load_recipe(again, []).recipe == resolved.recipe


@pytest.mark.parametrize(
    ("model", "trained"),
    [
        ({}, ["all", "!vision", "!language"]),
        ({"freeze_language": False}, ["all", "!vision"]),
        ({"lora": {"rank": 4}}, ["all", "!vision", "!language", "language.lora"]),
        ({"lora": {"groups": ["vision:last 1"]}}, ["all", "!vision", "!language", "vision.lora"]),
    ],
)
def test_both_encoders_are_frozen_unless_the_recipe_says_otherwise(
    tmp_path: Path, model: dict[str, Any], trained: list[str]
) -> None:
    assert _load(tmp_path, {"model": model}).recipe.model.trained_by_default() == trained


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.7}, "`temperature` is for sampling; set `do_sample: true`"),
        ({"top_k": 5}, "`top_k` is for sampling"),
        ({"length_penalty": 2.0}, "`length_penalty` is for beams"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        GenerationSection(**values)


@pytest.mark.parametrize(
    "values", [{}, {"do_sample": True, "temperature": 0.7}, {"num_beams": 3, "length_penalty": 2.0}]
)
def test_a_resolved_recipe_names_its_defaults_and_is_read_again(values):
    section = GenerationSection(**values)
    assert GenerationSection(**section.model_dump()) == section
