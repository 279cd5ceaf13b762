"""Encoders of many kinds run up to the end of a layer group and go on from there, to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RegNetConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)
from transformers.modeling_outputs import BaseModelOutput

from mmhf.conventions import ImageSize, height_and_width
from mmhf.features.boundaries import Run, find_boundary, is_exact, is_traced_for, run_above, run_below
from mmhf.models.backbones import load_encoder_config
from mmhf.models.encoders import describe_vision, drop_unused, fresh_encoder, pool_vision, run_vision, timm_config
from mmhf.models.layer_groups import layer_groups

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
PATCHES = {**SIZES, "image_size": 32, "patch_size": 8}
TRANSFORMERS = [
    CLIPVisionConfig(**PATCHES),
    ViTConfig(**PATCHES),
    Dinov2Config(**PATCHES),
    DINOv3ViTConfig(**PATCHES),
    SiglipVisionConfig(**PATCHES),
    BeitConfig(**PATCHES, use_shared_relative_position_bias=True),
    SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, image_size=32),
    RegNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8),
]
SWIN = {"depths": [1, 1], "embed_dim": 16, "num_heads": [2, 2], "window_size": 4, "img_size": 32}
TIMM: dict[str, dict[str, Any]] = {
    "test_efficientnet": {},
    "test_resnet": {},
    "test_vit": {},
    "test_vit4": {},
    "test_convnext": {},
    "test_mambaout": {},
    "mobilenetv3_small_050": {},
    "densenet121": {"block_config": [1, 2, 1, 1], "growth_rate": 8},
    "swin_tiny_patch4_window7_224": SWIN,
}
REAL = ("efficientnet_b0", "resnet18", "vgg11_bn", "vit_tiny_patch16_224", "convnext_atto")


def pixels(batch_size: int, side: ImageSize = 32) -> Tensor:
    return torch.randn(batch_size, 3, *height_and_width(side), generator=torch.Generator().manual_seed(batch_size))


def build(config: PreTrainedConfig, *, image_size: ImageSize | None = None) -> tuple[PreTrainedModel, Run]:
    """An encoder with random weights, none of which are 0, and what reads it."""
    torch.manual_seed(0)
    shape = describe_vision(config, "avg", image_size=image_size)
    encoder = fresh_encoder(config)
    drop_unused(encoder, shape.unused)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return encoder.eval(), lambda images: pool_vision(run_vision(encoder, images, "avg"), "avg", shape)


def tiny(config: PreTrainedConfig | str) -> PreTrainedConfig:
    if not isinstance(config, str):
        return config
    half = [0.5, 0.5, 0.5]
    statistics = {"input_size": [3, 32, 32], "mean": half, "std": half, "interpolation": "bicubic"}
    return timm_config(config, statistics, TIMM[config])


def name_of(config: Any) -> str:
    return config if isinstance(config, str) else config.model_type


def below_and_above(encoder: PreTrainedModel, group: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    groups, parameters = layer_groups(encoder), dict(encoder.named_parameters())
    names = list(groups)
    cut = names.index(group) + 1
    below, above = names[:cut], names[cut:]
    return tuple([parameters[name] for key in keys for name in groups[key]] for keys in (below, above))  # type: ignore[return-value]


def check_boundary(encoder: PreTrainedModel, run: Run, group: str, side: ImageSize = 32) -> None:
    boundary = find_boundary(encoder, run, group, image_size=side)
    assert boundary is not None and is_exact(encoder, run, boundary), group
    images = pixels(5, side)
    with torch.no_grad():
        expected = run(images)
        # As a store has them: rows of several batches, each by itself.
        rows = [run_below(encoder, run, boundary, images).contiguous()[row].clone() for row in range(5)]
        features = torch.stack(rows)
        kept = features.clone()
        assert torch.equal(run_above(encoder, run, boundary, features), expected), group
        assert torch.equal(features, kept), "the features are not changed"


@pytest.mark.parametrize("config", [*TIMM, *TRANSFORMERS], ids=name_of)
@pytest.mark.slow
def test_every_layer_group_is_a_boundary(config: PreTrainedConfig | str) -> None:
    encoder, run = build(tiny(config))
    groups = list(layer_groups(encoder))
    assert len(groups) > 2
    for group in groups[:-1]:
        check_boundary(encoder, run, group)


@pytest.mark.parametrize("config", ["test_efficientnet", "test_vit", TRANSFORMERS[0]], ids=name_of)
def test_boundaries_for_rectangles(config: PreTrainedConfig | str) -> None:
    encoder, run = build(tiny(config), image_size=(32, 64))
    check_boundary(encoder, run, list(layer_groups(encoder))[1], (32, 64))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", REAL)
def test_boundaries_of_real_architectures(architecture: str) -> None:
    side = 64
    encoder, run = build(load_encoder_config(f"timm/{architecture}", pretrained=False), image_size=side)
    groups = list(layer_groups(encoder))
    for group in {groups[0], groups[len(groups) // 2], groups[-2]}:
        check_boundary(encoder, run, group, side)


@pytest.mark.parametrize(
    "config",
    ["test_efficientnet", "test_resnet", "test_convnext", "test_vit", TRANSFORMERS[0], TRANSFORMERS[6]],
    ids=name_of,
)
@pytest.mark.slow
def test_the_upper_part_has_the_same_gradients_and_statistics(config: PreTrainedConfig | str) -> None:
    encoder, run = build(tiny(config))
    groups = list(layer_groups(encoder))
    group = groups[len(groups) // 2 - 1]
    below, above = below_and_above(encoder, group)
    for parameter in below:
        parameter.requires_grad_(False)
    boundary = find_boundary(encoder, run, group, image_size=32)
    assert boundary is not None
    images = pixels(4)
    features = run_below(encoder, run, boundary, images)
    assert not features.requires_grad
    upper = [
        module
        for module in encoder.modules()
        if any(parameter is each for parameter in above for each in module.parameters(recurse=False))
    ]
    buffers: list[list[Tensor]] = []
    gradients: list[list[Tensor]] = []
    before = copy.deepcopy(encoder.state_dict())
    for output_of in (lambda: run(images), lambda: run_above(encoder, run, boundary, features)):
        encoder.load_state_dict(before)
        for module in upper:
            module.training = True
        torch.manual_seed(1)
        (output_of() * torch.arange(4)[:, None]).sum().backward()
        gradients.append([parameter.grad for parameter in above if parameter.grad is not None])
        buffers.append([buffer.clone() for buffer in encoder.buffers()])
        encoder.zero_grad()
    assert len(gradients[0]) == len(above)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(*buffers, strict=True))


@pytest.mark.parametrize("config", ["test_efficientnet", "test_vit", TRANSFORMERS[0]], ids=name_of)
def test_neither_part_reads_the_weights_of_the_other(config: PreTrainedConfig | str) -> None:
    encoder, run = build(tiny(config))
    groups = list(layer_groups(encoder))
    group = groups[len(groups) // 2]
    boundary = find_boundary(encoder, run, group, image_size=32)
    assert boundary is not None
    below, above = below_and_above(encoder, group)
    with torch.no_grad():
        features, expected = run_below(encoder, run, boundary, pixels(3)), run(pixels(3))
        for parameter in below:
            parameter.fill_(float("nan"))
        assert torch.equal(run_above(encoder, run, boundary, features), expected)
        assert run(pixels(3)).isnan().all()
    encoder, run = build(tiny(config))
    with torch.no_grad():
        for parameter in below_and_above(encoder, group)[1]:
            parameter.fill_(float("nan"))
        assert torch.equal(run_below(encoder, run, boundary, pixels(3)), features)


def test_probing_leaves_no_trace() -> None:
    encoder, run = build(tiny("test_efficientnet"))
    encoder.train()
    encoder.timm_model.blocks[0].eval()
    before, modes = copy.deepcopy(encoder.state_dict()), [module.training for module in encoder.modules()]
    random = torch.get_rng_state()
    boundary = find_boundary(encoder, run, "stages.1", image_size=32)
    assert boundary is not None and is_exact(encoder, run, boundary)
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any("forward" in vars(module) for module in encoder.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_a_boundary_is_found_without_weights() -> None:
    config = tiny("test_resnet")
    shape = describe_vision(config, "avg")
    with torch.device("meta"):
        encoder = fresh_encoder(config)

    def run(images: Tensor) -> Tensor:
        return pool_vision(run_vision(encoder, images, "avg"), "avg", shape)

    boundary = find_boundary(encoder, run, "stages.1", image_size=32)
    assert boundary is not None and is_exact(encoder, run, boundary)
    features = run_below(encoder, run, boundary, torch.zeros(7, 3, 32, 32, device="meta"))
    assert features.is_meta and features.shape[0] == 7


@pytest.mark.parametrize("config", ["test_resnet", "test_efficientnet", "test_vit", TRANSFORMERS[1]], ids=name_of)
@pytest.mark.slow
def test_gradient_checkpointing(config: PreTrainedConfig | str) -> None:
    encoder, run = build(tiny(config))
    group = list(layer_groups(encoder))[2]
    plain = find_boundary(encoder, run, group, image_size=32)
    assert plain is not None
    below, above = below_and_above(encoder, group)
    for parameter in below:
        parameter.requires_grad_(False)
    features = run_below(encoder, run, plain, pixels(3))
    run_above(encoder, run, plain, features).pow(2).sum().backward()
    expected = [parameter.grad.clone() for parameter in above if parameter.grad is not None]
    encoder.zero_grad()
    encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert not is_traced_for(plain, encoder)
    boundary = find_boundary(encoder, run, group, image_size=32)
    assert boundary is not None and is_exact(encoder, run, boundary)
    encoder.train()
    assert torch.equal(run_below(encoder.eval(), run, boundary, pixels(3)), features)
    run_above(encoder, run, boundary, features).pow(2).sum().backward()
    found = [parameter.grad for parameter in above if parameter.grad is not None]
    assert len(found) == len(above)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_boundary_of_another_road_is_refused_and_never_wrong() -> None:
    encoder, run = build(tiny("test_resnet"))
    boundary = find_boundary(encoder, run, "stages.1", image_size=32)
    assert boundary is not None
    features = run_below(encoder, run, boundary, pixels(2))
    encoder.gradient_checkpointing_enable()  # timm then calls the blocks of all stages, and no stage
    with pytest.raises(RuntimeError, match=r"layer|without having called"):
        run_above(encoder, run, boundary, features)
    with pytest.raises(RuntimeError, match="without having called timm_model.layer2"):
        run_below(encoder, run, boundary, pixels(2))


@pytest.mark.parametrize("config", ["test_resnet", "test_vit", TRANSFORMERS[0]], ids=name_of)
def test_half_precision(config: PreTrainedConfig | str) -> None:
    encoder, run = build(tiny(config))
    group = list(layer_groups(encoder))[1]
    boundary = find_boundary(encoder, run, group, image_size=32)
    assert boundary is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = run_below(encoder, run, boundary, pixels(3))
        assert torch.equal(run_above(encoder, run, boundary, features), run(pixels(3)))


@pytest.mark.slow
def test_images_of_another_size() -> None:
    for config in ("test_efficientnet", TRANSFORMERS[1]):
        encoder, run = build(tiny(config), image_size=48)
        for group in list(layer_groups(encoder))[:-1]:
            check_boundary(encoder, run, group, side=48)


class Skipping(PreTrainedModel):
    """A stack whose output also reads what its first layer gave, scaled with a weight that may be 0."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig, scale: float, reads: Callable[[Tensor], Tensor]) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.scale = nn.Parameter(torch.full((), scale))
        self.reads = reads

    def forward(self, pixel_values: Tensor) -> BaseModelOutput:
        first = self.layers[0](pixel_values)
        hidden = self.layers[2](self.layers[1](first)) + self.scale * self.reads(first)
        return BaseModelOutput(last_hidden_state=hidden)


@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("reads", [lambda first: first, lambda first: first.mean().expand(1)])
def test_what_reads_past_the_boundary_is_refused_even_where_it_counts_for_nothing_yet(
    scale: float, reads: Callable[[Tensor], Tensor]
) -> None:
    encoder = Skipping(PreTrainedConfig(), scale, reads).eval()

    def run(images: Tensor) -> Tensor:
        return encoder(pixel_values=images).last_hidden_state.mean(dim=(2, 3))

    boundary = find_boundary(encoder, run, "layers.0", image_size=8)
    assert boundary is not None and is_exact(encoder, run, boundary), "its own output is the features"
    boundary = find_boundary(encoder, run, "layers.1", image_size=8)
    assert boundary is None or not is_exact(encoder, run, boundary)


def test_what_reads_all_blocks_goes_on_from_the_first_alone() -> None:
    config = ViTConfig(**PATCHES)
    described = describe_vision(config, "blocks")
    encoder = fresh_encoder(config).eval()
    drop_unused(encoder, described.unused)

    def run(images: Tensor) -> Tensor:
        return pool_vision(run_vision(encoder, images, "blocks"), "blocks", described)

    last = list(layer_groups(encoder))[-2]
    boundary = find_boundary(encoder, run, last, image_size=32)
    assert boundary is None or not is_exact(encoder, run, boundary)


def test_what_is_read_without_a_gradient_is_refused_by_its_bits() -> None:
    encoder = Skipping(PreTrainedConfig(), 1.0, lambda first: first.detach()).eval()

    def run(images: Tensor) -> Tensor:
        return encoder(pixel_values=images).last_hidden_state.mean(dim=(2, 3))

    boundary = find_boundary(encoder, run, "layers.1", image_size=8)
    assert boundary is not None, "the calls look sound, and autograd sees nothing"
    assert not is_exact(encoder, run, boundary)


class Backwards(PreTrainedModel):
    """Calls its layers in the wrong order."""

    config_class = PreTrainedConfig

    def __init__(self) -> None:
        super().__init__(PreTrainedConfig())
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, pixel_values: Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.layers[0](self.layers[1](self.layers[2](pixel_values))))


def test_layers_that_are_not_called_first_have_no_boundary() -> None:
    encoder = Backwards().eval()

    def run(images: Tensor) -> Tensor:
        return encoder(pixel_values=images).last_hidden_state.mean(dim=(2, 3))

    for group in ("layers.0", "layers.1"):
        assert find_boundary(encoder, run, group, image_size=8) is None
