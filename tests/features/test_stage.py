"""What a stage stores goes by the precision that is really used, wherever it was set."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import CLIPImageProcessor, TrainingArguments, ViTConfig

from mmhf.data.augment import build_augmentation
from mmhf.data.collators import ImageCollator, RandomChanges
from mmhf.data.samplers import SampleKey
from mmhf.features.choice import CacheSetting, choose_parts
from mmhf.features.stage import StageFeatures
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.recipe.augment_sections import AugmentSection
from mmhf.recipe.training_sections import CacheSection
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer
from tests.features.test_fill import IMAGES, read, rows

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("order", [("no", "bf16"), ("bf16", "no")])
def test_precision_that_accelerate_was_launched_with(order: tuple[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    vision = ViTConfig(
        **SIZES, image_size=32, patch_size=8
    )  # ends in a LayerNorm, whose output autocast leaves float32
    config = BackboneForImageClassificationConfig(
        vision_config=vision, vision_pooling="cls", id2label={0: "a", 1: "b"}
    )
    model = BackboneForImageClassification(config)
    square = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size=square, crop_size=square)
    found = {}
    for precision in order:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        AcceleratorState._reset_state(reset_partial_state=True)
        own, dataset = copy.deepcopy(model), rows(IMAGES)
        plan = StagePlan.build(own, [Stage(name="head", epochs=2.0, train="head")], steps_per_epoch=2)
        section = CacheSection(mode="on", folder=str(tmp_path / "features"))
        places = {"image": len(dataset)}
        setting = CacheSetting(section, lambda stage: RandomChanges(), (), len(dataset), places, {}, 32)
        features = StageFeatures(
            own, functools.partial(choose_parts, plan, setting), setting, processor=processor,
            example_inputs={"pixel_values": torch.zeros(1, 3, 32, 32)}, augmentations=[""],
        )  # fmt: skip
        args = TrainingArguments(
            output_dir=str(tmp_path / "run"), max_steps=plan.num_steps, use_cpu=True, report_to=[], disable_tqdm=True
        )
        assert not args.bf16, "it is set by the environment alone"
        MMTrainer(
            model=own, args=args, plan=plan, train_dataset=dataset, data_collator=ImageCollator(processor),
            features=features,
        )  # fmt: skip
        features.enter(0)
        column: Any = dataset.columns["image_features"]
        assert column.dtype == torch.float32
        found[precision] = (column.store.folder, read(column))
    assert found["no"][0] != found["bf16"][0]
    assert not torch.equal(found["no"][1], found["bf16"][1])
    with torch.no_grad():
        batch = ImageCollator(processor)(rows(IMAGES).__getitems__(range(len(IMAGES))))
        torch.testing.assert_close(found["no"][1], model.eval().image_features(batch["pixel_values"]))


@pytest.mark.parametrize("section", [{"horizontal_flip": 0.4}, {"horizontal_flip": 0.5, "vertical_flip": 0.3}])
@pytest.mark.slow
def test_stored_views_of_flips_are_what_each_sample_would_be(section: dict[str, float], tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = ViTConfig(**SIZES, image_size=32, patch_size=8)
    config = BackboneForImageClassificationConfig(
        vision_config=vision, vision_pooling="cls", id2label={0: "a", 1: "b"}
    )
    model = BackboneForImageClassification(config).eval()
    square = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size=square, crop_size=square)
    augmentation = build_augmentation(AugmentSection.model_validate(section), 32)
    dataset, num_views = rows(IMAGES), 2 ** len(section)
    plan = StagePlan.build(model, [Stage(name="head", epochs=4.0, train="head")], steps_per_epoch=2)
    setting = CacheSetting(
        CacheSection(mode="on", folder=str(tmp_path)), lambda stage: RandomChanges(augmentation), (), len(dataset),
        {"image": len(dataset)}, {}, 32,
    )  # fmt: skip
    features = StageFeatures(
        model, functools.partial(choose_parts, plan, setting), setting, processor=processor, seed=7,
        example_inputs={"pixel_values": torch.zeros(1, 3, 32, 32)}, augmentations=["x"],
    )  # fmt: skip
    collator = ImageCollator(processor, augmentation=augmentation, seed=7)
    features.attach(dataset, collator, is_training=True)
    features.enter(0)
    column: Any = dataset.columns["image_features"]
    assert column.num_views == num_views and features.num_computed == 21 * num_views
    plain = rows(IMAGES)
    seen = set()
    for epoch in range(4):
        keys = [SampleKey(index, epoch) for index in range(len(IMAGES))]
        with torch.no_grad():
            expected = model.image_features(collator(plain.read_rows(keys))["pixel_values"])
        stored = torch.stack([row["image_features"] for row in dataset.read_rows(keys)])
        torch.testing.assert_close(stored, expected, atol=1e-5, rtol=1e-4)
        seen |= {round(float(value), 4) for value in stored[0]}
    assert len(seen) > stored.shape[1]  # the first image was seen in more than one way
