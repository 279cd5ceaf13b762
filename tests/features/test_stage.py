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

from mmhf.data.collators import ImageCollator, RandomChanges
from mmhf.features.choice import CacheSetting, choose_parts
from mmhf.features.stage import StageFeatures
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
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
