from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    DebertaV2Config,
    Dinov2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    MPNetConfig,
    RobertaConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mmhf.models.backbones import load_encoder_config
from mmhf.models.encoders import (
    TEXT_POOLINGS,
    VISION_POOLINGS,
    EncoderOutput,
    describe_text,
    describe_vision,
    drop_unused,
    fresh_encoder,
    native_image_size,
    pool_text,
    pool_text_output,
    pool_vision,
    run_vision,
    timm_config,
)
from mmhf.models.torchvision_encoder import TorchvisionConfig

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
WORDS = {**SIZES, "vocab_size": 99, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1}
PATCHES = {**SIZES, "image_size": 32, "patch_size": 8}
VISION_CONFIGS = [
    CLIPVisionConfig(**PATCHES),
    ViTConfig(**PATCHES),
    Dinov2Config(**PATCHES),
    SiglipVisionConfig(**PATCHES),
    SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, image_size=32),
]
TEXT_CONFIGS = [
    BertConfig(**WORDS),
    DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=37, vocab_size=99, max_position_embeddings=40),
    RobertaConfig(**WORDS),
    AlbertConfig(embedding_size=16, **WORDS),
    MPNetConfig(**WORDS),
    ElectraConfig(embedding_size=16, **WORDS),
    CLIPTextConfig(**WORDS, eos_token_id=2),
    GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=99, bos_token_id=1, eos_token_id=2),
    DebertaV2Config(**WORDS, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"]),
]
TIMM = [
    "test_efficientnet",
    "test_resnet",
    "test_vit",
    "test_vit2",
    "test_vit4",
    "test_convnext",
    "test_mambaout",
    "mobilenetv3_small_050",
]


def name_of(config) -> str:
    return config.model_type


def every_parameter_trains(encoder, pooled: torch.Tensor) -> None:
    """A random weighting, so that no gradient is None or cancels by symmetry."""
    (pooled * torch.randn_like(pooled)).sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def check_vision(config, pooling: str) -> None:
    try:
        output = describe_vision(config, pooling)
    except ValueError:
        assert pooling in ("cls", "pooler")
        return
    torch.manual_seed(0)
    whole = AutoModel.from_config(config).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    encoder = copy.deepcopy(whole)
    drop_unused(encoder, output.unused)
    pooled = pool_vision(run_vision(encoder, pixel_values, pooling), pooling, output)
    assert pooled.shape == (2, output.width)
    expected = pool_vision(run_vision(whole, pixel_values, pooling), pooling, output)
    assert torch.equal(pooled, expected), "dropping unused parameters changed the output"
    every_parameter_trains(encoder, pooled)


@pytest.mark.parametrize("pooling", VISION_POOLINGS)
@pytest.mark.parametrize("config", VISION_CONFIGS, ids=name_of)
@pytest.mark.slow
def test_every_kept_parameter_of_a_transformers_image_encoder_gets_a_gradient(config, pooling):
    check_vision(config, pooling)


@pytest.mark.parametrize("architecture", TIMM)
@pytest.mark.slow
def test_every_kept_parameter_of_a_timm_encoder_gets_a_gradient(architecture, tiny_timm):
    for pooling in VISION_POOLINGS:
        check_vision(tiny_timm(architecture), pooling)


@pytest.mark.parametrize("pooling", TEXT_POOLINGS)
@pytest.mark.parametrize("config", TEXT_CONFIGS, ids=name_of)
@pytest.mark.slow
def test_every_kept_parameter_of_a_text_encoder_gets_a_gradient(config, pooling):
    if pooling == "pooler" and config.model_type in {"distilbert", "electra", "gpt2", "deberta-v2"}:
        with pytest.raises(ValueError, match="no pooler"):
            describe_text(config, pooling)
        return
    output = describe_text(config, pooling)
    torch.manual_seed(0)
    encoder = AutoModel.from_config(config).eval()
    drop_unused(encoder, output.unused)
    mask = torch.ones(2, 6, dtype=torch.long)
    pooled = pool_text_output(encoder(input_ids=torch.randint(3, 99, (2, 6)), attention_mask=mask), mask, pooling)
    assert pooled.shape == (2, output.width)
    every_parameter_trains(encoder, pooled)


def test_unused_parts_are_found_and_gone():
    bert = TEXT_CONFIGS[0]
    assert describe_text(bert, "cls").unused == ("pooler",)
    assert describe_text(bert, "pooler").unused == ()
    assert describe_vision(CLIPVisionConfig(**PATCHES), "avg").unused == ("post_layernorm",)
    vgg = load_encoder_config("timm/vgg11", pretrained=False)
    assert describe_vision(vgg, "avg").unused == ("timm_model.pre_logits",)
    dinov2 = Dinov2Config(**PATCHES)
    output = describe_vision(dinov2, "cls")
    assert output.unused == ("embeddings.mask_token",)
    encoder = AutoModel.from_config(dinov2)
    drop_unused(encoder, output.unused)
    drop_unused(encoder, output.unused)
    assert "embeddings.mask_token" not in dict(encoder.named_parameters())
    assert "embeddings.mask_token" in encoder.state_dict()


def test_encoder_output_survives_json():
    output = describe_vision(CLIPVisionConfig(**PATCHES), "avg")
    assert EncoderOutput.from_dict(output.to_dict()) == output


@pytest.mark.parametrize(
    ("layout", "shape"),
    [("channels_first", (2, 5, 3, 4)), ("channels_last", (2, 3, 4, 5)), ("tokens", (2, 14, 5))],
)
def test_vision_pooling_over_each_layout(layout, shape):
    patches = torch.randn(2, 12, 5)
    hidden = {
        "channels_first": patches.transpose(1, 2).reshape(2, 5, 3, 4),
        "channels_last": patches.reshape(2, 3, 4, 5),
        "tokens": torch.cat([torch.full((2, 2, 5), 99.0), patches], dim=1),
    }[layout]
    assert hidden.shape == shape
    output = BaseModelOutputWithPooling(last_hidden_state=hidden)
    described = EncoderOutput(5, layout, prefix_tokens=2 if layout == "tokens" else 0)
    average, highest = patches.mean(1), patches.amax(1)
    assert torch.allclose(pool_vision(output, "avg", described), average, atol=1e-6)
    assert torch.equal(pool_vision(output, "max", described), highest)
    assert torch.allclose(pool_vision(output, "concat", described), torch.cat([average, highest], -1), atol=1e-6)
    if layout == "tokens":
        assert pool_vision(output, "cls", described).eq(99).all()
    else:
        with pytest.raises(ValueError, match="class token"):
            pool_vision(output, "cls", described)


def blocks_of(config):
    """What `blocks` gives of an encoder, and its own output."""
    torch.manual_seed(0)
    encoder = AutoModel.from_config(config).eval()
    described = describe_vision(config, "blocks")
    output = run_vision(encoder, torch.randn(2, 3, 32, 32), "blocks")
    pooled = pool_vision(output, "blocks", described)
    assert pooled.shape == (2, described.width)
    return pooled, output


def test_blocks_are_the_averages_of_all_stages_of_a_convolutional_network(tiny_timm):
    pooled, output = blocks_of(tiny_timm("test_efficientnet"))
    grids = [*output.hidden_states, output.last_hidden_state]
    assert len({each.shape[2] for each in grids}) > 2, "from fine to coarse"
    assert torch.allclose(pooled, torch.cat([each.mean(dim=(2, 3)) for each in grids], 1), atol=1e-6)


def test_blocks_leave_class_tokens_out_and_the_last_state_counts_once(tiny_timm):
    pooled, output = blocks_of(ViTConfig(**PATCHES))
    states = [*output.hidden_states, output.last_hidden_state]
    assert torch.allclose(pooled, torch.cat([each[:, 1:].mean(dim=1) for each in states], 1), atol=1e-6)
    pooled, output = blocks_of(tiny_timm("test_resnet"))
    assert pooled.shape[1] == sum(each.shape[1] for each in output.hidden_states)


def test_grids_within_an_encoder_have_their_channels_first(tiny_timm):
    small = {"img_size": 32, "depths": [1, 1], "embed_dim": 16, "num_heads": [2, 2], "window_size": 4}
    pictures = tiny_timm().pretrained_cfg
    for config in (TorchvisionConfig("swin_t"), timm_config("swin_tiny_patch4_window7_224", pictures, small)):
        _, output = blocks_of(config)
        assert all(state.shape[1] > state.shape[2] == state.shape[3] for state in output.hidden_states)


def test_an_encoder_without_outputs_of_blocks_says_so():
    output = BaseModelOutputWithPooling(last_hidden_state=torch.zeros(2, 5, 3, 3))
    with pytest.raises(ValueError, match="outputs of its blocks"):
        pool_vision(output, "blocks", EncoderOutput(5, "channels_first"))


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last_token"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_changes_a_pooled_text(pooling, side):
    hidden = torch.randn(1, 4, 6)
    bare = pool_text(hidden, torch.ones(1, 4, dtype=torch.long), pooling)
    junk, zeros = torch.full((1, 3, 6), 1e4), torch.zeros(1, 3, dtype=torch.long)
    ones = torch.ones(1, 4, dtype=torch.long)
    parts = ([junk, hidden], [zeros, ones]) if side == "left" else ([hidden, junk], [ones, zeros])
    padded = pool_text(torch.cat(parts[0], 1), torch.cat(parts[1], 1), pooling)
    assert torch.allclose(padded, bare, atol=1e-6)
    expected = {"cls": hidden[:, 0], "mean": hidden.mean(1), "max": hidden.amax(1), "last_token": hidden[:, -1]}
    assert torch.allclose(bare, expected[pooling], atol=1e-6)


def test_an_image_size_that_does_not_fit_is_refused(tiny_timm):
    with pytest.raises(ValueError, match="96 px"):
        describe_vision(tiny_timm("swin_tiny_patch4_window7_224"), "avg", image_size=96)
    vit = load_encoder_config("timm/vit_tiny_patch16_224", pretrained=False)
    assert describe_vision(vit, "avg", image_size=96).width == 192
    assert describe_vision(ViTConfig(**PATCHES), "avg", image_size=64).prefix_tokens == 1


def test_images_may_be_rectangles(tiny_timm):
    tall = (64, 32)
    assert describe_vision(ViTConfig(**PATCHES), "avg", image_size=tall).prefix_tokens == 1
    assert describe_vision(load_encoder_config("timm/vit_tiny_patch16_224", pretrained=False), "avg", image_size=tall)
    assert describe_vision(tiny_timm("test_efficientnet"), "avg", image_size=tall)
    with pytest.raises(ValueError, match="images of 64 x 32 px do not fit"):
        describe_vision(tiny_timm("swin_tiny_patch4_window7_224"), "avg", image_size=tall)
    with pytest.raises(ValueError, match="images of 64 x 224 px do not fit"):
        describe_vision(load_encoder_config("torchvision/vit_b_32", pretrained=False), "avg", image_size=(64, 224))


def test_position_embeddings_fit_rectangles_of_the_own_width():
    config = ViTConfig(**PATCHES)
    encoder, (height, width) = fresh_encoder(config).eval(), native_image_size(config)
    images = torch.randn(2, 3, 2 * height, width)
    with torch.no_grad():
        tokens = run_vision(encoder, images, "avg").last_hidden_state
    assert tokens.shape[1] == 1 + 2 * (height // config.patch_size) * (width // config.patch_size)


def test_describing_needs_no_weights_and_leaves_the_random_state():
    state = torch.get_rng_state()
    described = describe_vision(ViTConfig(hidden_size=4096, num_hidden_layers=4, num_attention_heads=32), "avg")
    assert described.width == 4096
    assert torch.equal(torch.get_rng_state(), state)
