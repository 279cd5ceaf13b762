"""Stages with their own batch size, augmentation and label smoothing."""

import copy
import io

import pytest
import torch
from PIL import Image

from mmhf.data.collators import ImageCollator, RandomChanges
from mmhf.errors import InputError
from mmhf.models.classification_loss import ClassificationLoss
from mmhf.recipe.augment_sections import AugmentSection
from mmhf.recipe.training_sections import PlateauSection
from mmhf.training.boundary import set_label_smoothing
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.weights import weights_hash

STAGES = [
    Stage(name="small", epochs=1.0, learning_rate=1e-2, batch_size=4),
    Stage(name="usual", epochs=1.0, learning_rate=1e-2),
    Stage(name="large", epochs=2.0, learning_rate=1e-3, batch_size=24),
]


@pytest.fixture
def counting(make_trainer):
    """Build a trainer that notes the size of each batch."""

    def build(*args, **kwargs):
        trainer = make_trainer(*args, **kwargs)
        trainer.sizes = []
        original = trainer.data_collator

        def collate(rows):
            trainer.sizes.append(len(rows))
            return original(rows)

        trainer.data_collator = collate
        return trainer

    return build


@pytest.mark.slow
def test_each_stage_has_its_batch_size_and_sees_all_rows(counting, tiny_model, tiny_data, tmp_path):
    trainer = counting(tiny_model, tiny_data, tmp_path, stages=STAGES, save_strategy="no")
    trainer.train()
    assert trainer.sizes == [4] * 12 + [8] * 6 + [24] * 4
    assert trainer.state.global_step == 22
    assert trainer.state.epoch == 4.0


@pytest.mark.slow
def test_resuming_finds_its_place_among_epochs_of_different_length(make_trainer, tiny_model, tiny_data, tmp_path):
    start = copy.deepcopy(tiny_model.state_dict())
    make_trainer(tiny_model, tiny_data, tmp_path, stages=STAGES).train()
    expected = weights_hash(tiny_model)
    for step in (5, 12, 14, 18, 19, 20, 21):
        tiny_model.load_state_dict(start)
        resumed = make_trainer(tiny_model, tiny_data, tmp_path, stages=STAGES)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert weights_hash(tiny_model) == expected, f"resumed at step {step}"


@pytest.mark.slow
def test_a_stage_that_ends_early_ends_with_its_epoch(counting, tiny_model, tiny_data, tmp_path):
    patience = PlateauSection(patience=1)
    stages = [
        Stage(name="small", epochs=3.0, learning_rate=0.0, batch_size=4, unfreeze_on_plateau=patience),
        Stage(name="usual", epochs=1.0, learning_rate=0.0),
    ]
    trainer = counting(tiny_model, tiny_data, tmp_path, stages=stages, eval_strategy="steps", eval_steps=7)
    trainer.train()
    assert trainer.plan.early_ends == {0: 24}
    assert trainer.state.global_step == 30

    resumed = counting(tiny_model, tiny_data, tmp_path, stages=stages, eval_strategy="steps", eval_steps=7)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-26"))
    assert resumed.state.global_step == 30
    assert set(resumed.sizes) <= {8}


def test_a_boundary_within_an_epoch_is_refused(tiny_model):
    stages = [Stage(name="odd", steps=7), Stage(name="small", epochs=1.0, batch_size=4)]
    with pytest.raises(InputError, match="stage 'odd' ends within an epoch"):
        StagePlan.build(tiny_model, stages, steps_per_epoch=6)


def test_the_collator_changes_images_as_the_stage_says():
    def darken(image):
        return torch.zeros_like(image)

    collator = ImageCollator(
        lambda images, return_tensors: {"pixel_values": torch.tensor([image.getpixel((0, 0))[0] for image in images])},
        stage_changes={1: RandomChanges(darken)},
    )
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "white").save(buffer, "PNG")
    image = {"path": None, "bytes": buffer.getvalue()}
    row = {"image": image, "row": 1, "id": "a", "index": 0, "epoch": 0, "draw": 0, "label": 0}
    assert collator([{**row, "stage": 0}])["pixel_values"].tolist() == [255]
    assert collator([{**row, "stage": 1}])["pixel_values"].tolist() == [0]


def test_augmentation_of_a_stage_needs_whole_epochs(tiny_model):
    with pytest.raises(InputError, match="whole epochs"):
        StagePlan.build(tiny_model, [Stage(name="s", steps=3, augment=AugmentSection())], steps_per_epoch=6)


def test_label_smoothing_of_a_stage_and_back(tiny_model):
    with pytest.raises(InputError, match="label_smoothing is for classifiers"):
        set_label_smoothing(tiny_model, Stage(name="s", steps=1, label_smoothing=0.1))
    tiny_model.loss = ClassificationLoss(label_smoothing=0.05)
    tiny_model.config.label_smoothing = 0.05
    set_label_smoothing(tiny_model, Stage(name="s", steps=1, label_smoothing=0.2))
    assert tiny_model.loss.label_smoothing == 0.2
    set_label_smoothing(tiny_model, Stage(name="t", steps=1))
    assert tiny_model.loss.label_smoothing == 0.05
