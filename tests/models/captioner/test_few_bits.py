"""A captioner whose frozen language model has few bits: what it computes, what is saved, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from mmhf.errors import InputError
from mmhf.export.folder import export_model
from mmhf.hub.averaging import refuse_misfits
from mmhf.hub.releases import resolve_model
from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.building import build_captioner_model, load_captioner_model
from mmhf.models.partition import Partition
from mmhf.models.quantization import QuantizedLinear
from mmhf.recipe.captioner_recipe import CaptionerModelSection
from mmhf.training.frozen_copies import keep_copies
from mmhf.training.weights import apply_freezing, weights_hash

Model = PrefixCaptionerForConditionalGeneration
Section = Callable[..., CaptionerModelSection]
KINDS = ((8, "torchao"), (4, "torchao"), (4, "bitsandbytes"))
LORA = {"rank": 2, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def build(section: Section, processor: CaptionerProcessor, model: Model) -> Callable[..., Model]:
    """The captioner of the fixture `model`, with few bits."""

    def make(bits: int, library: str = "torchao", **changes: Any) -> Model:
        asked = section(language={"quantization": {"bits": bits, "library": library}}, **changes)
        built = build_captioner_model(asked, processor=processor, image_size=32).eval()
        built.generation_config = model.generation_config
        built.projector.load_state_dict(model.projector.state_dict())
        return built

    return make


def _assert_same(first: Model, second: Model, batch: dict[str, Any]) -> None:
    assert weights_hash(first) == weights_hash(second)
    assert torch.equal(first(**batch).loss, second(**batch).loss)
    assert torch.equal(first.generate(batch["pixel_values"]), second.generate(batch["pixel_values"]))


def test_it_computes_what_transformers_does_with_torchaos_own_layers(
    build: Callable[..., Model], model: Model, batch: dict[str, Any]
) -> None:
    few = build(8)
    quantize_(
        model.language,
        Int8WeightOnlyConfig(set_inductor_config=False),
        lambda module, name: isinstance(module, nn.Linear) and name != "lm_head",
    )
    assert torch.equal(few(**batch).loss, model(**batch).loss)
    assert torch.equal(few.generate(batch["pixel_values"]), model.generate(batch["pixel_values"]))


@pytest.mark.parametrize(("bits", "library"), KINDS)
@pytest.mark.parametrize("refer", [True, False])
def test_it_comes_back_as_it_was_from_its_source_or_from_its_own_file(
    build: Callable[..., Model],
    batch: dict[str, Any],
    folder: Path,
    backbones: dict[str, str],
    bits: int,
    library: str,
    refer: bool,
) -> None:
    few = build(bits, library)
    if refer:
        few.refer_to({"language": backbones["language"]})
    few.save_pretrained(folder)
    saved = {name: each for name, each in load_file(folder / "model.safetensors").items() if "language" in name}
    assert bool(saved) != refer
    if saved:
        assert {torch.int8, torch.uint8} & {each.dtype for name, each in saved.items() if "up_proj.weight_" in name}
    loaded, info = Model.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    _assert_same(few, loaded, batch)
    low = Model.from_pretrained(folder, dtype=torch.bfloat16)
    name = "language.model.layers.1.self_attn.o_proj"
    for own in few.get_submodule(name).names:
        same, before = low.get_submodule(name).get_parameter(own), few.get_submodule(name).get_parameter(own)
        assert torch.equal(same, before.to(same.dtype)) and same.is_floating_point() == before.is_floating_point()
    assert low.generate(batch["pixel_values"].bfloat16()).shape[0] == 4


@pytest.mark.parametrize(("bits", "library"), KINDS)
def test_on_top_of_it_low_rank_changes_train_and_come_back(
    build: Callable[..., Model],
    batch: dict[str, Any],
    folder: Path,
    backbones: dict[str, str],
    bits: int,
    library: str,
) -> None:
    few, plain = build(bits, library, lora=LORA), build(bits, library)
    assert torch.equal(few(**batch).loss, plain(**batch).loss)
    partition = Partition.of(few)
    apply_freezing(few, partition, partition.select(["projector", "language.lora"]))
    keep_copies(few, "bf16")
    assert not any("_mmhf_copies" in vars(each) for each in few.modules() if isinstance(each, QuantizedLinear))
    assert any("_mmhf_copies" in vars(each) for each in few.vision.modules())
    few.train()(**batch).loss.backward()
    moved = {name for name, each in few.named_parameters() if each.grad is not None and each.grad.any()}
    assert moved == {
        *(name for name in dict(few.named_parameters()) if name.startswith("projector.")),
        *(name for name in dict(few.named_parameters()) if "lora_B" in name),  # A gets one as soon as B is not zero
    }
    with torch.no_grad():
        for name in moved:
            few.get_parameter(name).normal_(std=0.1)
    few.refer_to({"language": backbones["language"]})
    few.eval().save_pretrained(folder)
    _assert_same(few, Model.from_pretrained(folder), batch)
    with pytest.raises(InputError, match=f"changes of language cannot be merged into weights of {bits} bits"):
        few.merge_lora()


def test_a_release_goes_on_with_its_own_bits_alone(
    build: Callable[..., Model], model: Model, section: Section, folder: Path, batch: dict[str, Any]
) -> None:
    few = build(8)
    few.save_pretrained(folder)
    same = load_captioner_model(folder, section(language={"quantization": {"bits": 8}}))
    _assert_same(few, same, batch)
    for other in (None, {"bits": 4}):
        with pytest.raises(InputError, match=r"model\.language\.quantization: .* trained with \{'bits': 8, .*; set"):
            load_captioner_model(folder, section(language={"quantization": other}))
    model.save_pretrained(folder.with_name("plain"))
    with pytest.raises(InputError, match=r"model\.language\.quantization: \{'bits': 8.* trained with None; set"):
        load_captioner_model(folder.with_name("plain"), section(language={"quantization": {"bits": 8}}))


def test_it_has_no_graphs_and_what_is_stored_has_no_average(
    build: Callable[..., Model], processor: CaptionerProcessor, folder: Path, backbones: dict[str, str]
) -> None:
    few = build(8)
    for name, references in (("stored", {}), ("referred", {"language": backbones["language"]})):
        few.refer_to(references)
        few.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    with pytest.raises(InputError, match=r"stored: its language model has weights of 8 bits, which graphs do not"):
        export_model(folder / "stored", folder / "graphs")
    stored, referred = resolve_model(folder / "stored"), resolve_model(folder / "referred")
    with pytest.raises(InputError, match="weights of 8 bits, which its language model is stored in, have no average"):
        refuse_misfits([stored, stored])
    refuse_misfits([referred, referred])


def test_a_plan_counts_few_bits_and_needs_no_weights(section: Section) -> None:
    shapes = [
        build_captioner_model(section(language={"quantization": asked}), image_size=32, device="meta")
        for asked in (None, {"bits": 8}, {"bits": 4}, {"bits": 4, "library": "bitsandbytes"})
    ]
    sizes = [sum(each.numel() * each.element_size() for each in model.parameters()) for model in shapes]
    layers = [each for each in shapes[1].modules() if isinstance(each, QuantizedLinear)]
    weights = sum(each.in_features * each.out_features for each in layers)
    rows = sum(each.out_features for each in layers)
    assert sizes[0] - sizes[1] == 3 * weights - 5 * rows  # a scale and a zero for each row
    assert 3.4 * weights < sizes[0] - sizes[2] < 3.5 * weights
    assert sizes[0] - sizes[3] == 4 * weights - weights // 2 - weights // 16  # a scale for 64 weights
