"""Convolutional encoders on a CPU run on channels-last images; the numbers and what is saved stay what they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mmhf.features.keys import store_name
from mmhf.models.encoders import CHANNELS_LAST_SWITCH, EncoderOutput, laid_out, why_not_channels_last
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig

CPU = torch.device("cpu")
CONVOLUTIONAL = EncoderOutput(8, "channels_first")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(CHANNELS_LAST_SWITCH, raising=False)


@pytest.fixture
def make(tiny_timm: Any):
    def build(backbone: str) -> BackboneForImageClassification:
        torch.manual_seed(0)
        config = BackboneForImageClassificationConfig(vision_config=tiny_timm(backbone), id2label={0: "a", 1: "b"})
        return BackboneForImageClassification(config)

    return build


def is_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def step(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.train()
    model.zero_grad()
    torch.manual_seed(1)
    output = model(pixel_values=images, labels=torch.tensor([0, 1, 1]))
    output.loss.backward()
    return output.logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet"])
def test_a_step_gives_the_same_numbers_and_contiguous_gradients(make, monkeypatch, backbone):
    model, images = make(backbone), torch.randn(3, 3, 64, 64)
    seen: list[bool] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
            module.register_forward_hook(lambda module, args, output: seen.append(is_last(output)))
    logits, gradients = step(model, images)
    assert all(seen[:-2]) and seen  # the last ones may have one pixel a channel, which lies in either way
    monkeypatch.setenv(CHANNELS_LAST_SWITCH, "off")
    seen.clear()
    plain_logits, plain_gradients = step(model, images)
    assert not any(seen)
    torch.testing.assert_close(logits, plain_logits, atol=1e-4, rtol=1e-4)
    for found, expected in zip(gradients, plain_gradients, strict=True):
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


def test_other_encoders_get_their_images_as_they_were(make):
    model = make("test_vit")
    assert "no convolutional network" in str(why_not_channels_last(model.vision_output, CPU))
    images = torch.randn(2, 3, 160, 160)
    assert laid_out(images, model.vision_output) is images


def test_why_not(monkeypatch):
    assert why_not_channels_last(CONVOLUTIONAL, CPU) is None
    assert "meta" in str(why_not_channels_last(CONVOLUTIONAL, torch.device("meta")))
    monkeypatch.setenv(CHANNELS_LAST_SWITCH, "off")
    assert why_not_channels_last(CONVOLUTIONAL, CPU) == "MMHF_CHANNELS_LAST=off"


def test_what_is_one_number_or_laid_out_already_is_not_copied():
    stand_in = torch.zeros(()).expand(2, 3, 8, 8)
    assert laid_out(stand_in, CONVOLUTIONAL) is stand_in
    double = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    assert laid_out(double, CONVOLUTIONAL) is double
    last = laid_out(torch.zeros(2, 3, 8, 8), CONVOLUTIONAL)
    assert is_last(last) and laid_out(last, CONVOLUTIONAL) is last


def test_stored_features_are_kept_apart_by_the_format(make, monkeypatch):
    model = make("test_resnet")
    (part,) = model.feature_parts()

    def name() -> str:
        processor: Any = __import__("transformers").CLIPImageProcessor()
        return store_name(model, part, processor, dtype=torch.float32, precision="no", device=CPU)

    before = name()
    monkeypatch.setenv(CHANNELS_LAST_SWITCH, "off")
    assert name() != before
