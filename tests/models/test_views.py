"""Answers over views of an image equal an average by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torchvision.transforms.v2 import functional as pictures

from mmhf.models.fusion import FusionForImageTextClassification
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.models.targets import target_of
from mmhf.models.views import ImageViews

ALL = {"horizontal_flip": True, "vertical_flip": True, "center_crops": [0.75]}
LABELS = {"id2label": {0: "low", 1: "middle", 2: "high"}, "label2id": {"low": 0, "middle": 1, "high": 2}}
KINDS = {
    "one class": {},
    "several labels": {"problem_type": "multi_label_classification"},
    "ordered": {"ordinal": True},
    "numbers": {"problem_type": "regression", "target_mean": [10.0, 0.0, 5.0], "target_std": [2.0, 1.0, 3.0]},
}


def by_hand(images: torch.Tensor) -> list[torch.Tensor]:
    """The views of `ALL`, as torchvision makes them."""
    side = images.shape[-1]
    inner = pictures.resize(pictures.center_crop(images, [side * 3 // 4] * 2), [side, side], antialias=False)
    return [
        view
        for base in (images, inner)
        for half in (base, pictures.vertical_flip(base))
        for view in (half, pictures.horizontal_flip(half))
    ]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=KINDS)
def classifier(request, tiny_timm) -> BackboneForImageClassification:
    torch.manual_seed(0)
    sizes = {"vision_config": tiny_timm(), "head_hidden_dim": 8, "initializer_range": 0.5}
    config = BackboneForImageClassificationConfig(**sizes, **LABELS, **KINDS[request.param])
    return BackboneForImageClassification(config).eval()


def test_views_are_those_of_torchvision(images):
    views = ImageViews(**ALL)
    made, expected = [images, *views.others(images)], by_hand(images)
    assert len(views) == len(made) == len(expected) == 8
    for view in made:
        assert any(torch.allclose(view, each, atol=1e-5) for each in expected)
    assert len({tuple(view.flatten()[:50].tolist()) for view in made}) == 8
    words = "as it is, flipped upside down, left to right, both ways, the centre at 0.75 of the sides"
    assert views.describe() == f"mean of 8 views of each image ({words})"


@torch.no_grad()
def test_scores_are_the_mean_of_those_of_the_views(classifier, images):
    scores = target_of(classifier.config).scores
    alone = [scores(classifier(view).logits) for view in by_hand(images)]
    classifier.config.views = ALL
    torch.testing.assert_close(scores(classifier(images).logits), torch.stack(alone).mean(dim=0), rtol=0, atol=1e-5)
    assert (scores(classifier(images).logits) - alone[0]).abs().max() > 1e-4


@torch.no_grad()
def test_a_temperature_divides_what_was_averaged(classifier, images):
    classifier.config.views = ALL
    plain = classifier(images).logits
    classifier.config.calibration_temperature = 2.0
    torch.testing.assert_close(classifier(images).logits, plain / 2)


@torch.no_grad()
def test_the_loss_is_that_of_the_average(classifier, images):
    classifier.config.views = ALL
    numbers = torch.tensor([[1.0, 0.0, 1.0]] * 4)
    is_class = classifier.config.problem_type == "single_label_classification"
    labels = torch.tensor([0, 1, 2, 1]) if is_class else numbers
    heads = [classifier.head(classifier.image_features(view)) for view in by_hand(images)]
    expected = classifier.loss(classifier.loss.average(heads), labels)
    assert classifier(images, labels=labels).loss == pytest.approx(float(expected), abs=1e-5)


def test_training_sees_images_as_they_are_and_features_are_refused(classifier, images):
    classifier.config.views = ALL
    features = classifier.image_features(images)
    with pytest.raises(ValueError, match="features are of one view"):
        classifier(image_features=features)
    classifier.train()
    assert classifier(image_features=features).logits.shape == (4, 3)
    assert classifier._other_views(images) == []


@torch.no_grad()
def test_pixels_are_normalised_before_they_are_scaled(classifier):
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = torch.full((3, 1, 1), 127.5), torch.full((3, 1, 1), 60.0)
    classifier.config.views = ALL
    expected = classifier((pixels - mean) / std).logits
    classifier.normalise_pixels(mean, std)
    torch.testing.assert_close(classifier(pixels).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"normalize": True, "stand_in": "learnt"}, {"mask": "text"}])
def test_a_fusion_model_averages_with_each_rows_text(changes, tiny_config, batch):
    torch.manual_seed(0)
    model = FusionForImageTextClassification(tiny_config(initializer_range=0.5, **changes)).eval()
    for given in ({}, {"image_mask": torch.tensor([1, 0, 1])}):
        rows = {**batch, **given}
        model.config.views = None
        alone = [model(**{**rows, "pixel_values": view}) for view in by_hand(batch["pixel_values"])]
        model.config.views = ALL
        output = model(**rows)
        expected = torch.stack([each.logits.softmax(dim=-1) for each in alone]).mean(dim=0)
        torch.testing.assert_close(output.logits.softmax(dim=-1), expected, rtol=0, atol=1e-5)
        assert torch.equal(output.image_embeds, alone[0].image_embeds)
        text_alone = {name: value for name, value in rows.items() if name not in ("pixel_values", "image_mask")}
        if not changes:
            again = copy.deepcopy(model)
            again.config.views = None
            assert torch.equal(model(**text_alone).logits, again(**text_alone).logits)
