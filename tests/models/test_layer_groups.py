from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    DistilBertConfig,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from mmhf.models.backbones import load_encoder_config
from mmhf.models.layer_groups import layer_groups
from mmhf.models.partition import Partition

ARCHITECTURES = {
    "efficientnet_b0": ["stem", *(f"stages.{i}" for i in range(7)), "final"],
    "tf_efficientnet_lite0": ["stem", *(f"stages.{i}" for i in range(7)), "final"],
    "resnet18": ["stem", *(f"stages.{i}" for i in range(4))],
    "mobilenetv3_small_100": ["stem", *(f"stages.{i}" for i in range(6)), "final"],
    "densenet121": ["stem", *(f"stages.{i}" for i in range(4)), "final"],
    "vgg11_bn": ["stem", *(f"stages.{i}" for i in range(15)), "final"],
    "vit_tiny_patch16_224": ["stem", *(f"layers.{i}" for i in range(12)), "final"],
    "convnext_atto": ["stem", *(f"stages.{i}" for i in range(4)), "final"],
    "swin_tiny_patch4_window7_224": ["stem", *(f"stages.{i}" for i in range(4)), "final"],
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 37}


def on_meta(config):
    with torch.device("meta"):
        return AutoModel.from_config(config)


def assert_each_parameter_once(encoder, groups):
    listed = [name for names in groups.values() for name in names]
    assert sorted(listed) == sorted(name for name, _ in encoder.named_parameters())
    assert all(groups.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_timm_groups_cover_each_parameter_once_from_input_to_output(architecture):
    encoder = on_meta(load_encoder_config(f"timm/{architecture}", pretrained=False))
    groups = layer_groups(encoder)
    assert list(groups) == ARCHITECTURES[architecture]
    assert_each_parameter_once(encoder, groups)


def test_head_convolution_is_not_part_of_the_last_stage():
    groups = layer_groups(on_meta(load_encoder_config("timm/efficientnet_b0", pretrained=False)))
    assert groups["final"] == ["timm_model.conv_head.weight", "timm_model.bn2.weight", "timm_model.bn2.bias"]
    assert groups["stem"] == ["timm_model.conv_stem.weight", "timm_model.bn1.weight", "timm_model.bn1.bias"]
    assert all(name.startswith("timm_model.blocks.6.") for name in groups["stages.6"])


def test_numbers_sort_as_numbers():
    encoder = on_meta(load_encoder_config("timm/vit_tiny_patch16_224", pretrained=False))
    assert layer_groups(encoder)["layers.10"][0].startswith("timm_model.blocks.10.")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (CLIPVisionConfig(**SMALL), ["embeddings", "layers.0", "layers.1", "layers.2", "final"]),
        (ViTConfig(**SMALL), ["embeddings", "layers.0", "layers.1", "layers.2", "final"]),
        (
            DistilBertConfig(dim=32, n_layers=3, n_heads=2, hidden_dim=37),
            ["embeddings", *(f"layers.{i}" for i in range(3))],
        ),
    ],
    ids=["clip", "vit", "distilbert"],
)
def test_transformers_groups_cover_each_parameter_once(config, names):
    encoder = on_meta(config)
    groups = layer_groups(encoder)
    assert list(groups) == names
    assert_each_parameter_once(encoder, groups)


def test_bert_groups(tiny_bert):
    encoder = on_meta(tiny_bert())
    groups = layer_groups(encoder)
    assert list(groups) == ["embeddings", "layers.0", "layers.1", "final"]
    assert groups["final"] == ["pooler.dense.weight", "pooler.dense.bias"]
    assert_each_parameter_once(encoder, groups)


def test_a_timm_model_without_layers_is_named():
    encoder = on_meta(load_encoder_config("timm/poolformer_s12", pretrained=False))
    with pytest.raises(ValueError, match="poolformer_s12"):
        layer_groups(encoder)


@pytest.mark.parametrize(
    ("make", "head", "groups"),
    [
        (lambda: ResNetForImageClassification(ResNetConfig(depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8,
                                                           layer_type="basic")),
         ["classifier.1.bias", "classifier.1.weight"], ["embeddings", "stages.0", "stages.1", "head"]),
        (lambda: ViTForImageClassification(ViTConfig(**SMALL)),
         ["classifier.bias", "classifier.weight"],
          ["embeddings", *(f"layers.{i}" for i in range(3)), "final", "head"]),
        (lambda: TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet18", num_labels=3)),
         ["timm_model.fc.bias", "timm_model.fc.weight"], ["stem", *(f"stages.{i}" for i in range(4)), "head"]),
    ],
    ids=["resnet", "vit", "timm"],
)  # fmt: skip
def test_the_head_of_a_stock_classifier_is_a_group(make, head, groups):
    with torch.device("meta"):
        model = make()
    partition = Partition.of(model)
    assert list(partition) == groups and sorted(partition["head"]) == head
    assert partition.select("head") == ("head",)
