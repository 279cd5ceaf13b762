"""Tiny dual encoders from scratch, and the processor that goes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmhf.models.dual_encoder import DualEncoderModel, DualEncoderProcessor
from mmhf.models.dual_encoder.building import build_dual_encoder, build_dual_encoder_processor
from mmhf.recipe import recipe_from_dict
from mmhf.recipe.dual_encoder_recipe import ContrastiveRecipe

TINY = {
    "task": "contrastive",
    "model": {
        "vision": {"patch_size": 8, "width": 32, "layers": 2, "heads": 2},
        "text": {"width": 32, "layers": 2, "heads": 2, "vocab_size": 400},
        "embedding_dim": 16,
    },
    "data": {"source": "sample", "image_size": 32, "max_length": 16},
}


@pytest.fixture(scope="session")
def tiny_recipe_of() -> Callable[..., ContrastiveRecipe]:
    """A recipe of a tiny dual encoder with changes to its vision and text towers, model and loss."""

    def make(
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        contrastive: dict[str, Any] | None = None,
        **model: Any,
    ) -> ContrastiveRecipe:
        towers = {"vision": {**TINY["model"]["vision"], **(vision or {})}}
        towers["text"] = {**TINY["model"]["text"], **(text or {})}
        for name, changes in (("vision", vision), ("text", text)):
            if changes and "backbone" in changes:
                towers[name] = changes
        values = {**TINY, "model": {**TINY["model"], **model, **towers}, "contrastive": contrastive or {}}
        return recipe_from_dict(values, name="tiny").recipe

    return make


@pytest.fixture(scope="session")
def processor(tiny_recipe_of: Callable[..., ContrastiveRecipe], captions: list[str]) -> DualEncoderProcessor:
    recipe = tiny_recipe_of()
    return build_dual_encoder_processor(recipe.model, recipe.data, captions)


@pytest.fixture(scope="session")
def make_model(
    tiny_recipe_of: Callable[..., ContrastiveRecipe], processor: DualEncoderProcessor
) -> Callable[..., DualEncoderModel]:
    def make(**changes: Any) -> DualEncoderModel:
        torch.manual_seed(0)
        return build_dual_encoder(tiny_recipe_of(**changes), processor.tokenizer).eval()

    return make


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three pairs; the texts are of 4, 6 and 5 tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 300, (3, 6), generator=generator)
    mask = torch.ones(3, 6, dtype=torch.long)
    tokens[:, 0] = 2
    for row, length in enumerate((4, 6, 5)):
        tokens[row, length - 1] = 1
        tokens[row, length:] = 0
        mask[row, length:] = 0
    return {
        "pixel_values": torch.randn(3, 3, 32, 32, generator=generator),
        "input_ids": tokens,
        "attention_mask": mask,
    }
