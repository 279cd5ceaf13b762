"""Images in their own shape: equal to timm and transformers, and unmoved by padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.naflex_transforms import Patchify
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    ViTConfig,
)

from mmhf.models.encoders import (
    VISION_POOLINGS,
    describe_vision,
    drop_unused,
    fresh_encoder,
    pool_vision,
    run_vision,
    timm_config,
)
from mmhf.models.image_classifier import BackboneForImageClassificationConfig
from mmhf.models.naflex import NaflexImageProcessor, PatchSequences, sequence_patch_size

SIDE, PATCH = 32, 8
MOST = (SIDE // PATCH) ** 2
SHAPES = [(40, 40), (120, 30), (25, 90), (11, 200), (64, 48)]
"""Widths and heights: a square, a panorama, portraits."""
NARROW = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": PATCH, "pos_embed_grid_size": [4, 4]}
STATISTICS = {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


def tiny_siglip2(**changes: Any) -> Siglip2VisionConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
    return Siglip2VisionConfig(**{**sizes, "num_patches": MOST, "patch_size": PATCH, **changes})


CONFIGS = {
    "learned": timm_config("naflexvit_base_patch16_gap", STATISTICS, NARROW),
    "registers and attention": timm_config("naflexvit_so150m2_patch16_reg1_map", STATISTICS, NARROW),
    "class token": timm_config("naflexvit_base_patch16_gap", STATISTICS, {**NARROW, "class_token": True}),
    "factorized": timm_config("naflexvit_base_patch16_parfac_gap", STATISTICS, NARROW),
    "rotary": timm_config("naflexvit_base_patch16_gap", STATISTICS, {**NARROW, "rope_type": "axial"}),
    "siglip2": tiny_siglip2(),
}


def pictures(shapes: list[tuple[int, int]] = SHAPES) -> list[Image.Image]:
    """Noise of these widths and heights."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in shapes]


def processor(**changes: Any) -> NaflexImageProcessor:
    return NaflexImageProcessor(**{"patch_size": PATCH, "max_num_patches": MOST, **changes})


def encode(images: list[Image.Image]) -> Tensor:
    pixel_values: Tensor = processor()(images=images, return_tensors="pt")["pixel_values"]
    return pixel_values


def tiny_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Weights that are nowhere zero, so that positions count."""
    torch.manual_seed(0)
    encoder = fresh_encoder(config)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def poolings_of(config: PreTrainedConfig) -> list[str]:
    found = []
    for pooling in VISION_POOLINGS:
        try:
            describe_vision(config, pooling, image_size=SIDE)
        except ValueError:
            continue
        found.append(pooling)
    return found


@torch.no_grad()
def features(encoder: PreTrainedModel, pixel_values: Tensor, pooling: str) -> Tensor:
    shape = describe_vision(encoder.config, pooling, image_size=SIDE)
    pooled = pool_vision(run_vision(encoder, pixel_values, pooling), pooling, shape)
    assert pooled.shape == (len(pixel_values), shape.width)
    return pooled


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([1, 4, 14, 196, 1024]))
@example(4000, 10, 196)
@example(10, 4000, 196)
@example(1, 1, 196)
@example(1, 4000, 1)
@settings(max_examples=60, deadline=None)
def test_any_image_becomes_at_most_so_many_patches_with_its_proportions(width, height, most):
    patch = 2
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    given = processor(patch_size=patch, max_num_patches=most)(images=[image], return_tensors="pt")["pixel_values"]
    assert given.shape == (1, most, 3 * patch**2 + 1)
    sequences = PatchSequences.of(given)
    [[rows, columns]] = sequences.shapes().tolist()
    assert 1 <= rows * columns == int(sequences.mask.sum()) <= most
    # One scale before both sides are rounded up to whole patches, or as many more as make up one patch.
    scales = [(rows - 1, rows, height), (columns - 1, columns, width)]
    least = max(0 if low == 0 else low * patch / length for low, _, length in scales)
    largest = min(high * patch / length for _, high, length in scales)
    assert least <= largest * (1 + 1e-3), "no scale gives both sides"
    # Nor would a larger image fit, up to the hundredfold.
    more = [math.ceil(length * min(largest * 1.01 + 1e-4, 100) / patch) for length in (height, width)]
    assert more[0] * more[1] > most or largest >= 99


def test_rows_and_columns_follow_from_the_marks():
    given = encode(pictures())
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        sequences = PatchSequences.of(given.to(dtype))
        shapes = sequences.shapes().tolist()
        assert len({tuple(shape) for shape in shapes}) == len(SHAPES)
        for mask, coordinates, (rows, columns) in zip(sequences.mask, sequences.coordinates(), shapes, strict=True):
            expected = [[row, column] for row in range(rows) for column in range(columns)]
            assert coordinates[mask].tolist() == expected
            assert coordinates[~mask].eq(0).all()
            assert mask[: len(expected)].all() and not mask[len(expected) :].any()


def test_patches_are_those_of_transformers_image_processor():
    own = PatchSequences.of(encode(pictures()))
    theirs = Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=MOST)(images=pictures(), return_tensors="pt")
    assert torch.equal(own.patches, theirs["pixel_values"])
    assert torch.equal(own.mask, theirs["pixel_attention_mask"].bool())
    assert torch.equal(own.shapes(), theirs["spatial_shapes"])


def test_saved_equals_loaded_also_by_auto_class(tmp_path):
    _ = BackboneForImageClassificationConfig  # makes the families known
    made = processor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=3)
    made.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is NaflexImageProcessor
    images = pictures()
    given = [each(images=images, return_tensors="pt")["pixel_values"] for each in (made, loaded)]
    assert torch.equal(*given)
    assert not torch.equal(given[0], encode(images))


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_the_librarys_own_and_do_not_depend_on_padding(name):
    encoder = tiny_encoder(CONFIGS[name])
    assert sequence_patch_size(encoder) == PATCH
    images = pictures()
    given = encode(images)
    tried = poolings_of(encoder.config)
    assert {"avg", "max", "concat", "blocks", "pooler"} <= set(tried)
    together = {pooling: features(encoder, given, pooling) for pooling in tried}
    for index, single in enumerate(given):
        # Without padding the library's own averages are what is meant.
        patches = single[None, single[:, -1] > 0]
        for pooling in tried:
            alone = features(encoder, patches, pooling)[0]
            assert torch.allclose(together[pooling][index], alone, atol=1e-5), (pooling, index)
        tokens = run_vision(encoder, patches, "avg").last_hidden_state[0]
        prefix = len(tokens) - patches.shape[1]
        assert torch.allclose(together["avg"][index], tokens[prefix:].mean(dim=0), atol=1e-5)
        assert torch.allclose(together["max"][index], tokens[prefix:].amax(dim=0), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(together["pooler"], _own_pooled(encoder, images), atol=1e-5)
    assert together["avg"].std(dim=0).mean() > 1e-2, "images must differ for this test to show anything"


def _own_pooled(encoder: PreTrainedModel, images: list[Image.Image]) -> Tensor:
    """What the libraries give by themselves for these images."""
    if encoder.config.model_type == "siglip2_vision_model":
        inputs = Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=MOST)(images=images, return_tensors="pt")
        pooled: Tensor = encoder(**inputs).pooler_output
        return pooled
    sized = [_sized(image) for image in images]
    patchify = Patchify(PATCH)
    rows = []
    for pixels in sized:
        patches = patchify(pixels)
        rows.append(encoder.timm_model({key: value[None] for key, value in patches.items()}))
    return torch.cat(rows)


def _sized(image: Image.Image) -> Tensor:
    """A picture (3, H, W) as the processor scales it, put together again from its patches."""
    [[rows, columns]] = PatchSequences.of(encode([image])).shapes().tolist()
    patches = encode([image])[0, : rows * columns, :-1].view(rows, columns, PATCH, PATCH, 3)
    return patches.permute(4, 0, 2, 1, 3).reshape(3, rows * PATCH, columns * PATCH)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_square_gives_what_it_gives_as_an_image_of_one_shape(name):
    encoder = tiny_encoder(CONFIGS[name])
    [square] = pictures([(SIDE, SIDE)])
    own, plain = encode([square]), _sized(square)[None]
    assert plain.shape[-2:] == (SIDE, SIDE)
    for pooling in poolings_of(encoder.config):
        assert torch.allclose(features(encoder, own, pooling), features(encoder, plain, pooling), atol=1e-5), pooling


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kept_parameter_gets_a_gradient(name):
    for pooling in ("avg", "pooler"):
        encoder = tiny_encoder(CONFIGS[name])
        shape = describe_vision(encoder.config, pooling, image_size=SIDE)
        drop_unused(encoder, shape.unused)
        pooled = pool_vision(run_vision(encoder, encode(pictures()), pooling), pooling, shape)
        (pooled * torch.randn_like(pooled)).sum().backward()
        assert [key for key, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_other_encoders_take_none():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    for config in (
        ViTConfig(image_size=SIDE, patch_size=PATCH, **sizes),
        timm_config("test_vit", STATISTICS),
        timm_config("naflexvit_base_patch16_gap", STATISTICS, {**NARROW, "embed_proj_type": "conv"}),
        timm_config("naflexvit_base_patch16_gap", STATISTICS, {**NARROW, "patchify_channels_last": False}),
    ):
        encoder = fresh_encoder(config)
        assert sequence_patch_size(encoder) is None
        with pytest.raises(ValueError, match="takes no images in their own shape"):
            run_vision(encoder, encode(pictures()), "avg")


def test_timm_scales_images_to_the_same_patches():
    """Its function takes what transformers' does; the processor uses the latter for both."""
    for width, height in SHAPES:
        _, size = timm.data.naflex_transforms.get_image_size_for_seq((height, width), PATCH, MOST)
        [shape] = PatchSequences.of(encode(pictures([(width, height)]))).shapes().tolist()
        assert [side // PATCH for side in size] == shape
