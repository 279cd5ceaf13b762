from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    CLIPImageProcessor,
    CLIPVisionConfig,
    ResNetConfig,
    ViTConfig,
)

import mmhf
from mmhf.models.encoders import timm_config
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.models.partition import Partition

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
_TINY_VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32}


def timm_stand_in(architecture: str, **model_args) -> transformers.PreTrainedConfig:
    half = [0.5, 0.5, 0.5]
    preprocessing = {"input_size": [3, 32, 32], "mean": half, "std": half, "interpolation": "bicubic"}
    return timm_config(architecture, preprocessing, model_args or None)


STAND_INS = {
    "resnet50": timm_stand_in("resnet50", layers=[1, 1, 1, 1], channels=[8, 8, 8, 8]),
    "resnet101": timm_stand_in("resnet101", layers=[1, 1, 2, 1], channels=[8, 8, 8, 8]),
    "efficientnet_b0-b4": timm_stand_in("test_efficientnet"),
    "mobilenetv3_small": timm_stand_in("mobilenetv3_small_050"),
    "densenet121": timm_stand_in("densenet121", growth_rate=4, block_config=[1, 1, 1, 1]),
    "vgg16": timm_stand_in("vgg16", mlp_ratio=0.01),
    "ViT-B/16": timm_stand_in("vit_base_patch16_224", **_TINY_VIT),
    "ViT-B/32": timm_stand_in("vit_base_patch32_224", **_TINY_VIT),
    "ViT-L/16": timm_stand_in("vit_large_patch16_224", **_TINY_VIT),
    "transformers ViT": ViTConfig(image_size=32, patch_size=8, **_SIZES),
    "transformers CLIP": CLIPVisionConfig(image_size=32, patch_size=8, **_SIZES),
    "transformers ResNet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]),
}


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.slow
def test_any_backbone_trains_in_full(name, classifier_config, images):
    torch.manual_seed(0)
    model = BackboneForImageClassification(classifier_config(vision_config=STAND_INS[name]))
    output = model(images, labels=torch.tensor([0, 1, 2, 0]))
    assert output.logits.shape == (4, 3)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    groups = list(Partition.of(model))
    assert groups[-1] == "head" and all(group.startswith("vision.") for group in groups[:-1])


@pytest.mark.parametrize(("pooling", "width"), [("avg", 1), ("max", 1), ("concat", 2)])
def test_pooling(pooling, width, classifier_config, classifier, images):
    channels = classifier.vision_output.width
    model = BackboneForImageClassification(classifier_config(vision_pooling=pooling)).eval()
    model.vision.load_state_dict(classifier.vision.state_dict())
    with torch.no_grad():
        grid = model.vision(pixel_values=images, do_pooling=False).last_hidden_state.flatten(2)
        features = model.image_features(images)
    expected = {"avg": [grid.mean(2)], "max": [grid.amax(2)], "concat": [grid.mean(2), grid.amax(2)]}[pooling]
    assert features.shape == (4, width * channels)
    assert torch.allclose(features, torch.cat(expected, dim=1), atol=1e-6)


def test_class_token_and_own_pooler(classifier_config, images):
    for pooling in ("cls", "pooler"):
        config = classifier_config(vision_config=STAND_INS["transformers ViT"], vision_pooling=pooling)
        assert BackboneForImageClassification(config)(images).logits.shape == (4, 3)


def test_head_is_the_seeds_by_default(tiny_timm):
    model = BackboneForImageClassification(
        BackboneForImageClassificationConfig(tiny_timm(), id2label={0: "a", 1: "b"})
    )
    kinds = [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [isinstance(layer, kind) for layer, kind in zip(model.head, kinds, strict=True)] == [True] * 5
    assert (model.head[0].p, model.head[1].out_features, model.head[3].p, model.head[4].out_features) == (
        0.3,
        512,
        0.15,
        2,
    )


def test_head_without_a_hidden_layer(classifier_config, images):
    model = BackboneForImageClassification(classifier_config(head_hidden_dim=None, head_dropout=[0.5, 0.0]))
    dropout, linear = model.head
    assert (dropout.p, linear.in_features) == (0.5, model.vision_output.width)
    assert model(images).logits.shape == (4, 3)


def test_two_dropouts_are_asked_for(tiny_timm):
    with pytest.raises(ValueError, match="head_dropout"):
        BackboneForImageClassificationConfig(tiny_timm(), head_dropout=[0.3])


def test_loss_is_weighted_and_smoothed_and_leaves_ignored_rows_out(classifier_config, images):
    weights = [0.2, 1.0, 3.5]
    config = classifier_config(class_weights=weights, label_smoothing=0.1)
    model = BackboneForImageClassification(config).eval()
    labels = torch.tensor([0, -100, 2, 1])
    output = model(images, labels=labels)
    expected = functional.cross_entropy(output.logits, labels, weight=torch.tensor(weights), label_smoothing=0.1)
    assert torch.allclose(output.loss, expected, atol=1e-6)


def test_running_by_parts_equals_the_whole(classifier, images):
    assert torch.equal(classifier.classify(classifier.image_features(images)).logits, classifier(images).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_equals_loaded(dtype, classifier_config, images, tmp_path):
    torch.manual_seed(1)
    config = classifier_config(class_weights=[1.0, 2.0, 3.0], vision_pooling="concat")
    model = BackboneForImageClassification(config).to(dtype).eval()
    model.save_pretrained(tmp_path)
    inputs = {"pixel_values": images.to(dtype), "labels": torch.tensor([0, 1, 2, 0])}
    with torch.no_grad():
        expected = model(**inputs)
        for loader in (BackboneForImageClassification, AutoModel, AutoModelForImageClassification):
            loaded = loader.from_pretrained(tmp_path)
            assert type(loaded) is BackboneForImageClassification and loaded.dtype == dtype
            actual = loaded(**inputs)
            assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
            torch.testing.assert_close(actual.logits, expected.logits)
            torch.testing.assert_close(actual.loss, expected.loss)
    assert type(AutoConfig.from_pretrained(tmp_path)) is BackboneForImageClassificationConfig


def test_the_stock_pipeline_serves_it(classifier, tmp_path, caplog):
    square = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size=square, do_center_crop=False, crop_size=square)
    classifier.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture) for picture in pixels]
    with torch.no_grad():
        expected = classifier(**processor(images=pictures, return_tensors="pt")).logits.softmax(-1)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        served = mmhf.pipeline("image-classification", model=str(tmp_path))
    assert type(served) is transformers.ImageClassificationPipeline
    assert "not supported" not in caplog.text
    for result, probabilities in zip(served(pictures, batch_size=2), expected, strict=True):
        scores = {entry["label"]: entry["score"] for entry in result}
        actual = [scores[name] for name in classifier.config.id2label.values()]
        np.testing.assert_allclose(actual, probabilities.numpy(), rtol=0, atol=1e-5)


def test_gradient_checkpointing_reaches_the_encoder(classifier_config, images):
    torch.manual_seed(0)
    config = classifier_config(vision_config=STAND_INS["transformers ViT"], head_dropout=[0.0, 0.0])
    model = BackboneForImageClassification(config).train()
    labels = torch.tensor([0, 1, 2, 0])
    model(images, labels=labels).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.vision.is_gradient_checkpointing
    model(images, labels=labels).loss.backward()
    assert all(torch.allclose(parameter.grad, expected[name]) for name, parameter in model.named_parameters())
