"""Which frozen parts are stored in which stage, and why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mmhf.data.augment import build_augmentation
from mmhf.data.collators import RandomChanges
from mmhf.data.mixing import BatchMixer
from mmhf.features.choice import CacheSetting, PartChoice, PartMeasure, choose_parts
from mmhf.features.parts import VISION
from mmhf.models.backbones import load_encoder, load_encoder_config
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.recipe.augment_sections import AugmentSection
from mmhf.recipe.training_sections import CacheSection
from mmhf.training.stages import Stage, StagePlan

STAGES = [
    Stage(name="head", epochs=3.0, train="head"),
    Stage(name="head again", epochs=2.0, train="head"),
    Stage(name="top", epochs=4.0, train=["head", "vision:last 2"]),
    Stage(name="all", epochs=2.0, train="all"),
]
LARGE = PartMeasure((1280,), torch.float32, flops=800_000_000)


@pytest.fixture(scope="module")
def model() -> BackboneForImageClassification:
    config = load_encoder_config("timm/test_efficientnet", pretrained=False, modality="image")
    encoder = load_encoder("timm/test_efficientnet", config, pretrained=False)
    names = {0: "a", 1: "b"}
    return BackboneForImageClassification(
        BackboneForImageClassificationConfig(vision_config=config, id2label=names), vision=encoder
    )


def setting(**changes: Any) -> CacheSetting:
    given = {"section": CacheSection(), "samples_per_epoch": 100, "places": {"image": 100}, "evaluated": {"image": 20}}
    return CacheSetting(
        **{"changes_in": lambda stage: RandomChanges(), "dropped": (), "image_size": 32, **given, **changes}
    )


def choose(model: Any, given: CacheSetting, measured: PartMeasure | None = LARGE) -> list[list[PartChoice]]:
    plan = StagePlan.build(model, STAGES, steps_per_epoch=10)
    return choose_parts(plan, given, lambda part: measured)


def changing(image: Any) -> Any:
    return image


def test_what_the_task_needs_is_stored_even_where_that_saves_no_time(model):
    few = {"samples_per_epoch": 1, "places": {"image": 100}}
    (of_first,), *_ = choose(model, setting(**few))
    (needed,), *_ = choose(model, setting(**few, needed={"vision"}))
    assert not of_first.is_used and needed.is_used and needed.for_training


def test_the_whole_encoder_then_its_lower_part_then_nothing(model):
    head, again, top, every = choose(model, setting())
    assert [choice.part for choice in head + again] == [VISION, VISION]
    assert head[0].is_used and head[0].for_training and head[0].passes == 5, "both stages read the same store"
    assert (head[0].num_rows, head[0].num_bytes) == (120, 120 * 1280 * 4)
    assert top[0].part.feature == "image_hidden" and top[0].part.boundary is not None and top[0].passes == 4
    assert every == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"changes_in": lambda stage: RandomChanges(changing)}, "change at random"),
        ({"changes_in": lambda stage: RandomChanges(None, BatchMixer(2, mixup=0.2))}, "images are mixed"),
        ({"dropped": ("vision",)}, "dropped at random"),
        ({"samples_per_epoch": None}, "a stream"),
    ],
)
def test_what_training_cannot_read_evaluation_does(model, changes, why):
    choice = choose(model, setting(**changes))[0][0]
    assert choice.is_used and not choice.for_training and why in choice.why
    assert choice.num_rows == 20, "the rows that are evaluated"
    assert not choose(model, setting(**changes, evaluated={}))[0][0].is_used


def test_views_store_each_image_as_often(model):
    given = setting(changes_in=lambda stage: RandomChanges(changing), section=CacheSection(views=2))
    choice = choose(model, given)[0][0]
    assert choice.for_training and choice.num_rows == 2 * 100 + 20 and choice.passes == 2.5


def test_a_flip_keeps_the_store_on_with_its_two_views(model):
    flips = build_augmentation(AugmentSection(horizontal_flip=0.3), 32)
    choice = choose(model, setting(changes_in=lambda stage: RandomChanges(flips)))[0][0]
    assert choice.for_training and choice.num_rows == 2 * 100 + 20 and choice.passes == 2.5
    turned = build_augmentation(AugmentSection(horizontal_flip=0.3, rotation=5), 32)
    assert not choose(model, setting(changes_in=lambda stage: RandomChanges(turned)))[0][0].for_training


def test_auto_leaves_off_what_saves_nothing_and_on_does_not(model):
    huge = PartMeasure((3, 1000, 1000), torch.float32, flops=1_000)
    choice = choose(model, setting(), huge)[0][0]
    assert not choice.is_used and "times as fast" in choice.why
    assert choose(model, setting(section=CacheSection(mode="on")), huge)[0][0].is_used
    assert choose(model, setting(section=CacheSection(mode="off"))) == [[], [], [], []]


def test_a_limit_and_a_shape_that_varies(model):
    limited = setting(section=CacheSection(mode="on", max_bytes=1000))
    assert "more than cache.max_bytes" in choose(model, limited)[0][0].why
    assert "no fixed shape" in choose(model, setting(), None)[0][0].why
    halved = choose(model, replace(setting(), section=CacheSection(dtype="float16")))[0][0]
    assert halved.dtype == torch.float16 and halved.num_bytes == 120 * 1280 * 2
    assert "120 × 1280 float16" in halved.describe() and "as fast" in halved.describe()
