"""Low-rank changes of encoders: which layers have them, what they are by peft, and that they can be merged."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_families import FAMILIES, SIDE
from torch import nn
from transformers import PreTrainedModel

from mmhf.errors import InputError
from mmhf.models.adapting import adapted, bypassed_layers, lora_values
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from mmhf.models.encoders import fresh_encoder, timm_config
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.models.image_classifier.building import load_image_classifier
from mmhf.models.layer_groups import is_lora, layer_of
from mmhf.models.lora import is_adaptable
from mmhf.models.partition import Partition
from mmhf.models.torchvision_encoder import TorchvisionConfig
from mmhf.recipe.image_classifier_recipe import ImageClassifierModelSection
from mmhf.recipe.sections import LoraSection
from mmhf.training.stages import Stage, StagePlan


def change(model: Any, groups: list[str], **values: Any) -> Any:
    """Give a model low-rank changes, with weights as if they had been trained."""
    model.add_lora(lora_values(model, LoraSection(**{"rank": 2, **values}), groups))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def outputs(name: str, model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return FAMILIES[name].loss(model, FAMILIES[name].batch([0, 1, 2]))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_changes_begin_with_the_outputs_of_the_model_and_of_pefts_own(name: str, dora: bool) -> None:
    model: Any = FAMILIES[name].model().eval()
    before, theirs = outputs(name, model), copy.deepcopy(model)
    model.add_lora(lora_values(model, LoraSection(rank=2, dora=dora), list(model.encoders())))
    assert torch.equal(outputs(name, model.eval()), before)

    for key, parameter in model.named_parameters():
        if "lora_B" in key or "magnitude" in key:
            nn.init.normal_(parameter, std=0.3)
    pattern = "|".join(map(re.escape, model.config.lora["modules"]))
    of_peft: Any = get_peft_model(
        theirs, LoraConfig(r=2, lora_alpha=16, use_dora=dora, target_modules=pattern, lora_dropout=0.0)
    ).eval()
    wrapped = of_peft.base_model.model
    assert wrapped.load_state_dict(model.state_dict()).missing_keys == []
    assert torch.equal(outputs(name, model), outputs(name, wrapped))
    assert not torch.equal(outputs(name, model), before)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_is_what_was_and_merged_it_needs_no_peft(name: str, dora: bool, tmp_path: Path) -> None:
    plain: Any = FAMILIES[name].model()
    names = plain.state_dict().keys()
    model = change(plain, list(plain.encoders()), dora=dora, dropout=0.5)
    expected = outputs(name, model)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(outputs(name, loaded.eval()), expected)

    model.merge_lora()
    torch.testing.assert_close(outputs(name, model), expected)
    assert model.config.lora is None and model.state_dict().keys() == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_partition_names_each_change_by_its_layer() -> None:
    model = change(FAMILIES["dual_encoder"].model(), ["vision:last 1", "text"])
    partition = Partition.of(model)
    low_rank = ("vision.lora.layers.1", "text.lora.layers.0", "text.lora.layers.1")
    assert tuple(group for group in partition if layer_of(group) != group) == low_rank
    assert partition.select("vision.lora") == low_rank[:1]
    assert partition.select("text.lora:last 1") == low_rank[2:]
    assert partition.select("text:last 1") == ("text.layers.1", "text.final")  # the layers' own weights
    assert low_rank[1] in partition.select("text") and low_rank[1] in partition.select("all")
    assert layer_of("text.lora.layers.0") == "text.layers.0" and layer_of("fusion") == "fusion"
    for group in partition:
        assert all(is_lora(name) == (group in low_rank) for name in partition[group])
    with pytest.raises(InputError, match=r"'vision\.lorra' matches no parameter group, did you mean vision\.lora"):
        partition.select("vision.lorra")


def test_a_change_has_the_rate_of_its_layer_and_the_decay_of_what_it_is() -> None:
    model = change(FAMILIES["fusion"].model(), ["vision", "text"], dora=True)
    stage = Stage(name="all", steps=1, layer_decay=0.5, learning_rate=1.0)
    plan = StagePlan.build(model, [stage], steps_per_epoch=1)
    rates = plan.stages[0].peak_rates
    assert all(rates[group] == rates[layer_of(group)] for group in rates)
    assert rates["text.lora.layers.0"] == rates["text.layers.1"] / 2
    decays = {id(each): group["decays"] for group in plan.parameter_groups() for each in group["params"]}
    kinds = {name: decays[id(each)] for name, each in model.named_parameters() if is_lora(name)}
    assert all(kinds[name] == ("magnitude" not in name) for name in kinds) and len(set(kinds.values())) == 2


def test_auto_takes_the_blocks_linear_layers_and_plain_convolutions_that_are_worth_it() -> None:
    model: Any = FAMILIES["fusion"].model()
    chosen = lora_values(model, LoraSection(rank=2), ["vision", "text"])["modules"]
    kinds = {type(model.get_submodule(name)) for name in chosen}
    assert kinds == {nn.Linear, nn.Conv2d}
    assert all(model.get_submodule(name).groups == 1 for name in chosen if name.startswith("vision."))
    assert not any("stem" in name or "embeddings" in name for name in chosen)
    assert {name.rpartition(".")[2] for name in chosen if name.startswith("text.")} == {
        "query",
        "key",
        "value",
        "dense",
    }
    wider = lora_values(model, LoraSection(rank=16), ["vision", "text:last 1"])["modules"]
    assert set(wider) < set(chosen)  # of the narrow layers a change would be larger than the weights
    assert lora_values(model, LoraSection(rank=2, target_modules=["attention.self.query"]), ["text:last 1"])[
        "modules"
    ] == ["text.encoder.layer.1.attention.self.query"]


def test_encoders_of_torchvision_can_be_changed() -> None:
    torch.manual_seed(0)
    config = BackboneForImageClassificationConfig(
        TorchvisionConfig("resnet18", image_size=SIDE), head_hidden_dim=8, id2label={0: "cat", 1: "dog"}
    )
    model = BackboneForImageClassification(config)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    before = model.eval()(pixels).logits
    changed = change(model, ["vision"])
    after = changed(pixels).logits
    assert not torch.equal(before, after)
    changed.merge_lora()
    torch.testing.assert_close(changed(pixels).logits, after)


SIZES: dict[str, Any] = {"embed_dim": 16, "img_size": 32}
WINDOWS = {**SIZES, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
BYPASSING = {
    "beit_base_patch16_224": ({**SIZES, "depth": 2, "num_heads": 2}, {"qkv"}),
    "eva02_tiny_patch14_224": ({**SIZES, "depth": 2, "num_heads": 2, "patch_size": 16}, {"qkv"}),
    "swinv2_tiny_window8_256": (WINDOWS, {"qkv"}),
    "swin_tiny_patch4_window7_224": (WINDOWS, set()),
    "vit_small_patch16_224": ({**SIZES, "depth": 2, "num_heads": 2}, set()),
}


def classifier_of(architecture: str) -> BackboneForImageClassification:
    torch.manual_seed(0)
    config = BackboneForImageClassificationConfig(
        timm_config(architecture, {"input_size": [3, 224, 224]}, BYPASSING[architecture][0]),
        head_hidden_dim=8,
        id2label={0: "cat", 1: "dog"},
    )
    return BackboneForImageClassification(config, vision=fresh_encoder(config.vision_config)).eval()


@pytest.mark.parametrize("architecture", BYPASSING)
def test_each_layer_that_auto_takes_takes_part(architecture: str) -> None:
    """Some attention of timm's multiplies with the weights of `qkv` itself, and would pass a change of it by."""
    model, pixels = classifier_of(architecture), torch.randn(2, 3, 32, 32)
    for parameter in model.vision.parameters():
        if parameter.ndim == 1:  # some norms begin with zeros, behind which nothing is seen
            nn.init.uniform_(parameter, 0.5, 1.5)
    linear = {name for name, each in model.vision.named_modules() if type(each) is nn.Linear and ".head" not in name}
    bypassed = BYPASSING[architecture][1]
    model.add_lora(lora_values(model, LoraSection(rank=1), ["vision"]))
    modules = model.config.lora["modules"]
    left_out = {name for name in linear if f"vision.{name}" not in modules}
    assert {name.rpartition(".")[2] for name in left_out} == bypassed and modules

    model(pixels).logits.sum().backward()
    assert all(each.grad is not None for name, each in model.named_parameters() if is_lora(name))
    before = model(pixels).logits
    for name in modules:
        factor = model.get_parameter(f"{name}.lora_B.default.weight")
        nn.init.normal_(factor)
        assert not torch.equal(model(pixels).logits, before), name
        nn.init.zeros_(factor)
    assert torch.equal(model(pixels).logits, before)


@pytest.mark.parametrize("architecture", [name for name, (_, bypassed) in BYPASSING.items() if bypassed])
def test_a_layer_that_is_never_called_cannot_be_named(architecture: str) -> None:
    model = classifier_of(architecture)
    [name] = BYPASSING[architecture][1]
    with pytest.raises(
        InputError, match=rf"target_modules: '{name}' names vision\.timm_model\..*\.{name}, .* name others, there are"
    ):
        lora_values(model, LoraSection(rank=2, target_modules=["proj", name]), ["vision"])
    assert lora_values(model, LoraSection(rank=2, target_modules=["attn.proj"]), ["vision"])["modules"]


def test_layers_that_torchvision_does_not_call_are_found() -> None:
    with torch.device("meta"):
        encoder = fresh_encoder(TorchvisionConfig("swin_t", image_size=64))
    assert {name.rpartition(".")[2] for name in bypassed_layers(encoder)} == {"qkv", "proj"}


def test_what_attention_reads_without_calling_it_is_not_changed() -> None:
    """`nn.MultiheadAttention` takes the weights of `out_proj` and leaves the layer alone."""
    attention = nn.MultiheadAttention(8, 2)
    assert not is_adaptable(attention.out_proj) and is_adaptable(nn.Linear(8, 8))
    assert not is_adaptable(nn.Conv2d(8, 8, 3, groups=8)) and not is_adaptable(nn.Conv2d(8, 8, 3, dilation=2))
    assert not is_adaptable(nn.Conv2d(8, 8, 3, padding_mode="reflect")) and is_adaptable(nn.Conv2d(8, 8, 3))


@pytest.mark.parametrize(
    ("groups", "values", "message"),
    [
        (["vison"], {}, r"model\.lora\.groups: selector 'vison' matches no parameter group, did you mean vision"),
        (["vision:last 9"], {}, r"model\.lora\.groups: selector 'vision:last 9' asks for last 9 of 5 blocks"),
        (["vision.stem", "text"], {}, r"'vision\.stem' has no linear layer or plain convolution larger than"),
        (["text"], {"rank": 64}, r"'text' has no linear layer or plain convolution larger than a change of rank 64"),
        (
            ["text"],
            {"target_modules": ["q_proj"]},
            r"'q_proj' names no linear .* of text; there are dense, key, query",
        ),
        (
            ["vision", "text"],
            {"target_modules": ["query"]},
            r"'vision' has no linear layer .* named in target_modules",
        ),
    ],
)
def test_what_chooses_no_layer_is_named(groups: list[str], values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lora_values(FAMILIES["fusion"].model(), LoraSection(**{"rank": 2, **values}), groups)


def test_a_release_with_changes_goes_on_with_them_and_with_no_others(tmp_path: Path) -> None:
    model = change(FAMILIES["image_classifier"].model(), ["vision:last 1"])
    model.config.vision_backbone = "timm/test_efficientnet"
    model.save_pretrained(tmp_path)
    lora = {"rank": 2, "groups": ["vision:last 1"]}

    def load(given: dict[str, Any] | None, **more: Any) -> Any:
        section = {"vision": {"backbone": "timm/test_efficientnet"}, "lora": given, **more}
        return load_image_classifier(
            tmp_path, ImageClassifierModelSection.model_validate(section), label_names=["cat", "dog"]
        )

    for more in ({}, {"reset_head": True}):
        loaded = load(lora, **more)
        assert loaded.config.lora == model.config.lora
        for name, tensor in model.vision.state_dict().items():
            assert torch.equal(tensor, loaded.vision.state_dict()[name])
    with pytest.raises(InputError, match=r"model\.lora: absent, but init_from .* has low-rank changes apart"):
        load(None)
    with pytest.raises(InputError, match=r"model\.lora: rank 3, but init_from .* was trained with 2"):
        load({**lora, "rank": 3})
    with pytest.raises(InputError, match=r"model\.lora: modules .*, but init_from .* was trained with "):
        load({**lora, "groups": ["vision"]})


def test_a_part_of_an_encoder_ends_below_the_first_layer_with_a_change_that_trains() -> None:
    family = FAMILIES["image_classifier"]
    model = change(family.model(), ["vision:last 2"])
    partition, [whole] = Partition.of(model), model.feature_parts()
    assert model.part_below(whole, ["head"], image_size=SIDE) == whole
    assert set(model.part_groups(whole)) == {group for group in partition if group.startswith("vision.")}
    trained = ["head", *partition.select("vision.lora")]
    below = model.part_below(whole, trained, image_size=SIDE)
    layers = [group for group in partition.select("vision") if layer_of(group) == group]
    first = next(group for group in trained if group.startswith("vision."))
    assert below.boundary in layers[: layers.index(layer_of(first))]
    # What lies below holds changes of its own when only higher ones train.
    last = model.part_below(whole, ["head", "vision.lora.final"], image_size=SIDE)
    assert last.boundary == layers[-2] and first in model.part_groups(last)
    model.use_part(last)
    batch = family.batch([0, 1])
    hidden = model.compute_features(last, pixel_values=batch["pixel_values"])
    assert torch.equal(model(image_hidden=hidden).logits, model(batch["pixel_values"]).logits)


def test_the_towers_of_a_recipe_without_stages_keep_their_weights() -> None:
    section = ImageClassifierModelSection.model_validate({"lora": {"groups": ["vision:last 2"]}})
    assert section.trained_by_default() == ["all", "!vision", "vision.lora"]
    model = adapted(FAMILIES["image_classifier"].model(), section)
    trained = Partition.of(model).select(section.trained_by_default())
    assert trained[-1] == "head" and all(group.startswith("vision.lora.") for group in trained[:-1])


def test_a_dual_encoder_of_a_config_alone_has_its_changes() -> None:
    config = change(FAMILIES["dual_encoder"].model(), ["text"]).config
    with torch.device("meta"):
        shapes = DualEncoderModel(DualEncoderConfig.from_dict(config.to_dict()))
    assert Partition.of(shapes).select("text.lora") and shapes.device.type == "meta"
