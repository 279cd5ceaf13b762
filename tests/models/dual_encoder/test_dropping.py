from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from open_clip.transformer import PatchDropout as OpenClipPatchDropout
from timm.layers import DropPath
from torch import Tensor, nn

from mmhf.errors import InputError
from mmhf.models.dual_encoder import DualEncoderModel
from mmhf.models.dual_encoder.building import build_dual_encoder, load_dual_encoder
from mmhf.models.partition import Partition
from mmhf.recipe.dual_encoder_recipe import ContrastiveRecipe
from mmhf.training.weights import apply_freezing

RecipeOf = Callable[..., ContrastiveRecipe]
TIMM = {"backbone": "timm/test_vit", "pretrained": False}
PATCHES = {"scratch": 16, "timm": 4}


@pytest.fixture
def build(tiny_recipe_of: RecipeOf) -> Callable[..., DualEncoderModel]:
    def make(kind: str, **values: float) -> DualEncoderModel:
        torch.manual_seed(0)
        return build_dual_encoder(tiny_recipe_of(vision={**(TIMM if kind == "timm" else {}), **values}))

    return make


def first_block(model: DualEncoderModel) -> nn.Module:
    vision = model.vision
    return vision.timm_model.blocks[0] if hasattr(vision, "timm_model") else vision.layers[0]


def tokens_seen(model: DualEncoderModel, pixels: Tensor) -> Tensor:
    """What reaches the first block of the image tower."""
    seen: list[Tensor] = []
    handle = first_block(model).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        model.get_image_features(pixels)
    handle.remove()
    return seen[0]


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["scratch", "timm"])
def test_training_leaves_patches_out_and_never_the_class_token(build, pixels: Tensor, kind: str) -> None:
    plain, model = build(kind), build(kind, patch_dropout=0.4)
    assert list(plain.state_dict()) == list(model.state_dict())
    whole = tokens_seen(plain.train(), pixels)
    assert whole.shape[1] == 1 + PATCHES[kind]
    torch.manual_seed(3)
    kept = tokens_seen(model.train(), pixels)
    expected = OpenClipPatchDropout(0.4).train()(whole)
    assert kept.shape == expected.shape and kept.shape[1] < whole.shape[1]
    torch.testing.assert_close(kept[:, 0], whole[:, 0])
    # Each kept token is one of the image's own, with its position; other images keep other places.
    places = [[int((whole[row] - token).abs().sum(-1).argmin()) for token in kept[row]] for row in range(6)]
    for row, taken in enumerate(places):
        torch.testing.assert_close(kept[row], whole[row, taken])
        assert len(set(taken)) == len(taken) and taken[0] == 0
    assert len({tuple(sorted(taken)) for taken in places}) > 1
    torch.manual_seed(3)
    assert torch.equal(tokens_seen(model, pixels), kept)


@pytest.mark.parametrize(
    ("kind", "values"),
    [("scratch", {"patch_dropout": 0.5}), ("timm", {"patch_dropout": 0.5, "stochastic_depth": 0.5})],
)
def test_evaluation_and_frozen_towers_leave_nothing_out(build, pixels: Tensor, kind: str, values: dict) -> None:
    plain, model = build(kind).eval(), build(kind, **values)
    expected = plain.get_image_features(pixels).pooler_output
    assert not torch.equal(model.train().get_image_features(pixels).pooler_output, expected)
    assert torch.equal(model.eval().get_image_features(pixels).pooler_output, expected)
    partition = Partition(model.parameter_groups())
    apply_freezing(model, partition, partition.select(["!vision"]))
    assert torch.equal(model.train().get_image_features(pixels).pooler_output, expected)
    # What is stored at a boundary above the patch embedding was made of all patches.
    top = partition.select(["vision:last 1", "projections"])
    apply_freezing(model, partition, top)
    assert tokens_seen(model.train(), pixels).shape[1] == 1 + PATCHES[kind]


def test_layers_are_left_out_as_timm_does(build, tmp_path: Path, tiny_recipe_of: RecipeOf) -> None:
    model = build("timm", stochastic_depth=0.3)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.3) and min(rates) > 0
    assert list(model.state_dict()) == list(build("timm").state_dict())
    # A release has nothing of it; going on from one has what the recipe says.
    model.save_pretrained(tmp_path)
    loaded = DualEncoderModel.from_pretrained(tmp_path)
    assert not any(isinstance(module, DropPath) for module in loaded.modules())
    again = load_dual_encoder(tmp_path, tiny_recipe_of(vision={**TIMM, "stochastic_depth": 0.2}))
    assert max(module.drop_prob for module in again.modules() if isinstance(module, DropPath)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("vision", "expected"),
    [
        ({"patch_dropout": 0.5}, r"model\.vision\.patch_dropout: timm/test_efficientnet cannot do without patches"),
        (
            {"backbone": "timm/vgg11", "stochastic_depth": 0.1},
            r"stochastic_depth: timm/vgg11 cannot do without layers",
        ),
        ({"backbone": "torchvision/resnet18", "stochastic_depth": 0.1}, r"torchvision/resnet18 cannot do without lay"),
    ],
)
def test_encoders_that_cannot_are_named_before_weights_are_made(
    tiny_recipe_of: RecipeOf, vision: dict, expected: str
) -> None:
    recipe = tiny_recipe_of(
        vision={"backbone": "timm/test_efficientnet", "pretrained": False, "pooling": "avg", **vision}
    )
    with pytest.raises(InputError, match=expected):
        build_dual_encoder(recipe, device="meta")
