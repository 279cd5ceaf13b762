from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel

from mmhf.errors import InputError
from mmhf.models.backbones import reference_of
from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.building import build_captioner_model, load_captioner_model
from mmhf.models.partition import Partition
from mmhf.recipe.captioner_recipe import CaptionerModelSection

Model = PrefixCaptionerForConditionalGeneration
LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


def _saved_parts(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return {name.split(".")[0] for name in weights.keys()}  # noqa: SIM118  (not a dict)


def _assert_same(first: Model, second: Model, batch: dict[str, Any]) -> None:
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    torch.testing.assert_close(first(**batch).loss, second(**batch).loss)
    assert torch.equal(first.generate(batch["pixel_values"]), second.generate(batch["pixel_values"]))


@pytest.mark.slow
def test_a_whole_model_comes_back_as_it_was(model: Model, batch: dict[str, Any], folder: Path) -> None:
    model.save_pretrained(folder)
    assert _saved_parts(folder) == {"vision", "projector", "language"}
    loaded = AutoModel.from_pretrained(folder)
    _assert_same(model, loaded, batch)
    assert loaded.generation_config.max_new_tokens == 8 and not loaded.training


@pytest.mark.parametrize("parts", [["vision", "language"], ["vision"], ["language"]])
@pytest.mark.slow
def test_parts_that_are_referred_to_are_left_out_and_come_back(
    model: Model, batch: dict[str, Any], folder: Path, backbones: dict[str, str], parts: list[str]
) -> None:
    model.refer_to({part: backbones[part] for part in parts})
    model.save_pretrained(folder)
    assert _saved_parts(folder) == {"vision", "projector", "language"} - set(parts)
    loaded, info = Model.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    _assert_same(model, loaded, batch)
    loaded.save_pretrained(folder.with_name("again"))
    assert _saved_parts(folder.with_name("again")) == _saved_parts(folder)


def test_a_model_that_refers_to_nothing_any_more_is_saved_whole(
    model: Model, folder: Path, backbones: dict[str, str]
) -> None:
    model.refer_to(backbones)
    model.refer_to({})
    model.save_pretrained(folder)
    assert _saved_parts(folder) == {"vision", "projector", "language"}


def test_a_part_that_cannot_be_brought_back_is_named(model: Model, folder: Path) -> None:
    model.refer_to({"language": str(folder / "gone")})
    model.save_pretrained(folder)
    with pytest.raises(InputError, match=r"gone: no weights found"):
        Model.from_pretrained(folder)


@pytest.fixture
def lora_model(section: Callable[..., CaptionerModelSection], processor: CaptionerProcessor, model: Model) -> Model:
    adapted = build_captioner_model(section(lora=LORA), processor=processor, image_size=32).eval()
    adapted.generation_config = model.generation_config
    adapted.projector.load_state_dict(model.projector.state_dict())
    return adapted


def test_adapters_change_nothing_at_first_and_are_a_group_of_their_own(
    lora_model: Model, model: Model, batch: dict[str, Any]
) -> None:
    torch.testing.assert_close(lora_model(**batch).loss, model(**batch).loss)
    groups = lora_model.parameter_groups()
    low_rank = [name for group, names in groups.items() if group.startswith("language.lora.") for name in names]
    assert len(low_rank) == 2 * 2 * 2  # layers, modules, A and B
    assert not any(".lora_" in name for name in groups["language.layers.0"])


@pytest.mark.parametrize("refer", [True, False])
def test_trained_adapters_come_back_with_a_language_model_that_is_referred_to(
    lora_model: Model, batch: dict[str, Any], folder: Path, backbones: dict[str, str], refer: bool
) -> None:
    before = lora_model(**batch).loss
    with torch.no_grad():
        partition = Partition.of(lora_model)
        for name in partition.parameters_of(partition.select("language.lora")):
            lora_model.get_parameter(name).normal_()
    assert lora_model(**batch).loss != before
    if refer:
        lora_model.refer_to(backbones)
    lora_model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        names = [name for name in weights.keys() if name.startswith("language.")]  # noqa: SIM118
    assert all(".lora_" in name for name in names) == refer
    _assert_same(lora_model, Model.from_pretrained(folder), batch)


def test_a_release_without_adapters_may_go_on_with_them(
    model: Model, section: Callable[..., CaptionerModelSection], folder: Path, batch: dict[str, Any]
) -> None:
    model.save_pretrained(folder)
    adapted = load_captioner_model(folder, section(lora=LORA))
    assert Partition.of(adapted).select("language.lora")
    torch.testing.assert_close(adapted(**batch).loss, model(**batch).loss)


def test_what_a_backbone_is_referred_to_as(tmp_path: Path) -> None:
    assert reference_of("pypi/efficientnet-lite0") == "pypi/efficientnet-lite0"
    assert reference_of("timm/resnet18.a1_in1k") == "timm/resnet18.a1_in1k"
    assert reference_of(str(tmp_path)) is None
