from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from mmhf.errors import InputError
from mmhf.models.classification_loss import LossSettings
from mmhf.models.image_classifier import BackboneForImageClassification
from mmhf.models.image_classifier.building import build_image_classifier, load_image_classifier
from mmhf.models.partition import Partition
from mmhf.recipe.image_classifier_recipe import ImageClassifierModelSection

NAMED_BACKBONES = {
    "resnet50": 4,
    "resnet101": 4,
    "efficientnet_b0": 7,
    "efficientnet_b1": 7,
    "efficientnet_b2": 7,
    "efficientnet_b3": 7,
    "efficientnet_b4": 7,
    "mobilenetv3_small_100": 6,
    "densenet121": 4,
    "vgg16": 12,
    "vit_base_patch16_224": 12,
    "vit_base_patch32_224": 12,
    "vit_large_patch16_224": 24,
}
LABELS = ["rust", "blight", "healthy"]


def section(backbone: str = "timm/test_efficientnet", **changes) -> ImageClassifierModelSection:
    values = {"vision": {"backbone": backbone, "pretrained": False}, "head": {"hidden_dim": 8}}
    return ImageClassifierModelSection.model_validate({**values, **changes})


def on_meta(backbone: str) -> BackboneForImageClassification:
    name = backbone if "/" in backbone else f"timm/{backbone}"
    return build_image_classifier(section(name), label_names=LABELS, device="meta", image_size=224)


def trained(model: BackboneForImageClassification, *selectors: str) -> tuple[tuple[str, ...], int]:
    """Groups of the encoder that the selectors choose beside the head, and their number of parameters."""
    partition = Partition.of(model)
    groups = tuple(group for group in partition.select(["head", *selectors]) if group != "head")
    counts = partition.counts(model)
    return groups, sum(counts[group] for group in groups)


def torchvision_blocks(name: str) -> dict[str, int]:
    """Parameters of a torchvision model by child, those of `features` one by one."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    blocks: dict[str, nn.Module] = dict(model.named_children())
    if "features" in blocks:
        blocks = dict(model.features.named_children())
    return {name: sum(parameter.numel() for parameter in block.parameters()) for name, block in blocks.items()}


@pytest.mark.parametrize("backbone", NAMED_BACKBONES)
@pytest.mark.slow
def test_named_backbones_have_their_layers_as_groups(backbone):
    groups = list(Partition.of(on_meta(backbone)))
    layers = [group for group in groups if group.startswith(("vision.stages.", "vision.layers."))]
    assert len(layers) == NAMED_BACKBONES[backbone]
    assert (groups[0], groups[-1]) == ("vision.stem", "head")


def test_stage_two_of_resnet50_is_layer3_and_layer4():
    model, blocks = on_meta("resnet50"), torchvision_blocks("resnet50")
    for selector in ("vision:last 30%", "vision:last 2"):
        groups, count = trained(model, selector)
        assert groups == ("vision.stages.2", "vision.stages.3")
        assert groups == trained(model, "vision.stages.2", "vision.stages.3")[0]
        assert count == blocks["layer3"] + blocks["layer4"]


@pytest.mark.slow
def test_stage_two_of_efficientnet_b0_is_the_last_30_percent_of_its_9_feature_blocks():
    blocks = list(torchvision_blocks("efficientnet_b0").values())
    expected = sum(blocks[int(0.7 * len(blocks)) :])
    groups, count = trained(on_meta("torchvision/efficientnet_b0"), "vision:last 30%")
    assert groups == ("vision.features.6", "vision.features.7", "vision.features.8")
    assert len(blocks) == 9 and count == expected
    # timm does not call the last convolution a block: two stages, and it comes along.
    groups, count = trained(on_meta("efficientnet_b0"), "vision:last 2")
    assert groups == ("vision.stages.5", "vision.stages.6", "vision.final")
    assert count == expected


@pytest.mark.slow
def test_stage_two_of_mobilenetv3_is_the_last_30_percent_of_torchvisions_13_feature_blocks():
    blocks = list(torchvision_blocks("mobilenet_v3_small").values())
    for selector in ("vision:last 30%", "vision:last 4"):
        groups, count = trained(on_meta("torchvision/mobilenet_v3_small"), selector)
        assert groups == tuple(f"vision.features.{index}" for index in range(9, 13))
        assert count == sum(blocks[9:])
    model = on_meta("mobilenetv3_small_100")
    groups, count = trained(model, "vision:last 2")
    assert groups == ("vision.stages.4", "vision.stages.5")
    assert len(blocks) == 13 and count == sum(blocks[int(0.7 * len(blocks)) :])
    # timm counts blocks of one width as one stage, so that a share of its 6 stages happens to be the same cut.
    assert trained(model, "vision:last 30%")[0] == ("vision.stages.4", "vision.stages.5")


# What `last 2` trains of the eleven backbones of the clinical program.
CLINICAL = {
    **dict.fromkeys(("resnet50", "resnet101"), ("layer3", "layer4")),
    **dict.fromkeys(("efficientnet_b0", "efficientnet_b1", "efficientnet_b4"), ("features.7", "features.8")),
    "densenet121": ("denseblock3", "denseblock4", "final"),
    "vgg16": ("features.26", "features.28"),
    **dict.fromkeys(("vit_b_16", "vit_b_32"), ("layers.10", "layers.11", "final")),
    **dict.fromkeys(("vit_l_16", "vit_l_32"), ("layers.22", "layers.23", "final")),
}


@pytest.mark.parametrize("name", CLINICAL)
@pytest.mark.slow
def test_last_counts_blocks_on_all_clinical_backbones(name):
    model = on_meta(f"torchvision/{name}")
    groups, _ = trained(model, "vision:last 2")
    assert groups == tuple(f"vision.{group}" for group in CLINICAL[name])
    blocks = [group for group in Partition.of(model) if group.rpartition(".")[2] not in ("stem", "final", "head")]
    with pytest.raises(InputError, match=f"of {len(blocks)} blocks"):
        Partition.of(model).select(f"vision:last {len(blocks) + 1}")


def test_what_does_not_fit_is_named():
    wrong = section("timm/swin_tiny_patch4_window7_224")
    with pytest.raises(InputError, match=r"model\.vision: backbone timm/swin.* 96 px"):
        build_image_classifier(wrong, label_names=LABELS, device="meta", image_size=96)
    no_token = section(vision={"backbone": "timm/test_resnet", "pretrained": False, "pooling": "cls"})
    with pytest.raises(InputError, match=r"model\.vision: .* pooling cls: .*class token"):
        build_image_classifier(no_token, label_names=LABELS, device="meta")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("release")
    build_image_classifier(section(), label_names=LABELS).save_pretrained(folder)
    return folder


def state_of(model: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_init_from_carries_encoder_and_head_over(release):
    parent = BackboneForImageClassification.from_pretrained(release)
    changed = section(head={"hidden_dim": 8, "dropout": [0.1, 0.0]})
    model = load_image_classifier(
        release, changed, label_names=LABELS, loss=LossSettings(label_smoothing=0.2, class_weights=[1.0, 2.0, 3.0])
    )
    assert equal(model.state_dict(), parent.state_dict())
    assert model.config.head_dropout == [0.1, 0.0] and model.head[0].p == 0.1
    assert model.loss.label_smoothing == 0.2 and model.loss.weight.tolist() == [1.0, 2.0, 3.0]


def test_a_head_without_a_hidden_layer_is_not_taken_for_one_with(tmp_path):
    build_image_classifier(section(head={"hidden_dim": None}), label_names=LABELS).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"model\.head\.hidden_dim: 8, but .* was trained with None"):
        load_image_classifier(tmp_path, section(head={"hidden_dim": 8}), label_names=LABELS)
    model = load_image_classifier(tmp_path, section(head={"hidden_dim": None}), label_names=LABELS)
    assert equal(model.state_dict(), BackboneForImageClassification.from_pretrained(tmp_path).state_dict())


def test_reset_head_takes_other_labels_and_another_head(release):
    parent = BackboneForImageClassification.from_pretrained(release)
    changed = section(head={"hidden_dim": 4, "activation": "gelu"}, reset_head=True)
    for device in (None, "meta"):
        model = load_image_classifier(
            release, changed, label_names=["a", "b"], loss=LossSettings(class_weights=[1.0, 3.0]), device=device
        )
        assert [tuple(weight.shape) for weight in (model.head[1].weight, model.head[4].weight)] == [
            (4, parent.vision_output.width),
            (2, 4),
        ]
        assert model.config.id2label == {0: "a", 1: "b"}
        if device is None:
            assert equal(state_of(model, "vision."), state_of(parent, "vision."))


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({}, ["rust", "healthy", "blight"], r"its labels are rust, blight, healthy.*reset_head: true"),
        ({"vision": {"backbone": "timm/test_resnet"}}, LABELS, r"model\.vision\.backbone: 'timm/test_resnet', but"),
        ({"head": {"hidden_dim": None}}, LABELS, r"model\.head\.hidden_dim: None, but .* 8"),
        ({"head": {"hidden_dim": 8, "activation": "tanh"}}, LABELS, r"model\.head\.activation: 'tanh', but .*'relu'"),
    ],
)
def test_a_recipe_that_does_not_fit_the_release_is_refused(release, changes, labels, message):
    with pytest.raises(InputError, match=message):
        load_image_classifier(release, section(**changes), label_names=labels)


def test_another_family_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="a mmhf_fusion model, where mmhf_backbone is needed"):
        load_image_classifier(tmp_path, section(), label_names=LABELS)
