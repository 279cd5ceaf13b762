"""The name of a store: another one wherever samples would get other features, and no other."""

from __future__ import annotations

import copy
from typing import Any

import PIL
import pytest
import timm
import torch
import transformers
from transformers import CLIPImageProcessor

from mmhf.features.keys import store_name
from mmhf.features.parts import VISION, FeaturePart
from mmhf.models.adapting import lora_values
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.recipe.sections import LoraSection


@pytest.fixture
def model(tiny_timm: Any) -> BackboneForImageClassification:
    torch.manual_seed(0)
    config = BackboneForImageClassificationConfig(vision_config=tiny_timm("test_resnet"), id2label={0: "a", 1: "b"})
    return BackboneForImageClassification(config)


def name(model: Any, processor: Any = None, part: FeaturePart = VISION, **changes: Any) -> str:
    given = {"dtype": torch.float32, "precision": "no", "device": torch.device("cpu"), **changes}
    return store_name(model, part, processor or CLIPImageProcessor(), **given)


def test_what_does_not_matter(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.head.parameters():
            parameter.add_(1)
    other.config.vision_config.name_or_path = "elsewhere"
    assert name(other) == name(model)


def test_weights_and_statistics(model):
    names = {name(model)}
    with torch.no_grad():
        next(model.vision.parameters()).flatten()[0] += 1e-3
        names.add(name(model))
        next(buffer for key, buffer in model.vision.named_buffers() if "running_mean" in key)[0] += 1e-3
        names.add(name(model))
    assert len(names) == 3


def test_low_rank_changes_count_by_their_weights_and_by_what_multiplies_them(model):
    names = {name(model)}
    model.add_lora(lora_values(model, LoraSection(rank=2), ["vision"]))
    names.add(name(model))
    changed = next(parameter for key, parameter in model.named_parameters() if "lora_B" in key)
    with torch.no_grad():
        changed.add_(1)
    names.add(name(model))
    model.config.lora["alpha"] = 3.0
    names.add(name(model))
    assert len(names) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": torch.float16},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"least_side": 224},
        {"device": torch.device("meta")},
        {"processor": CLIPImageProcessor(size={"height": 32, "width": 32})},
        {"processor": CLIPImageProcessor(image_mean=[0.5, 0.5, 0.5])},
        {"part": FeaturePart("vision", ("pixel_values",), "image_hidden", "vision.stem", 32)},
    ],
    ids=str,
)
def test_each_setting_that_features_depend_on(model, changes):
    assert name(model, **changes) != name(model)


def test_the_kind_of_a_gpu(model, monkeypatch):
    names = set()
    for kind in ("one", "other"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, kind=kind: kind)
        names.add(name(model, device=torch.device("cuda")))
    assert len(names) == 2


@pytest.mark.parametrize("library", [torch, transformers, timm, PIL], ids=lambda library: library.__name__)
def test_the_version_of_each_library_that_computes(model, library, monkeypatch):
    before = name(model)
    monkeypatch.setattr(library, "__version__", "0.0")
    assert name(model) != before


@pytest.mark.parametrize(
    "switch",
    [
        lambda value: torch.set_float32_matmul_precision("high" if value == "tf32" else "highest"),
        lambda value: setattr(torch.backends.mkldnn.matmul, "fp32_precision", value),
        lambda value: setattr(torch.backends.mkldnn.conv, "fp32_precision", value),
    ],
    ids=["matrices, the older switch", "matrices", "convolutions"],
)
def test_how_float32_is_multiplied(model, switch):
    before = name(model)
    try:
        switch("tf32")
        assert name(model) != before
    finally:
        switch("ieee")
    assert name(model) == before


def test_pooling_belongs_to_the_part(model):
    before = name(model)
    model.config.vision_pooling = "max"
    assert name(model) != before
