from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmhf.errors import InputError
from mmhf.models.dual_encoder import DualEncoderModel
from mmhf.models.dual_encoder.building import build_dual_encoder, build_dual_encoder_processor, load_dual_encoder
from mmhf.recipe import recipe_from_dict
from mmhf.recipe.dual_encoder_recipe import ContrastiveRecipe

RecipeOf = Callable[..., ContrastiveRecipe]


def test_the_default_is_the_seed_s_model() -> None:
    recipe = recipe_from_dict({"task": "contrastive", "data": {"source": "flickr30k", "path": "x"}}, name="r").recipe
    model = build_dual_encoder(recipe, device="meta")
    vision, text = model.vision.config, model.text.config
    assert (vision.image_size, vision.patch_size, vision.hidden_size) == (224, 16, 768)
    assert (vision.num_hidden_layers, vision.num_attention_heads) == (12, 12)
    assert (text.hidden_size, text.num_hidden_layers) == (512, 8)
    assert (vision._attn_implementation, text._attn_implementation) == ("sdpa", "sdpa")


def test_a_config_keeps_the_loss_and_not_which_pairs_make_up_a_step(tmp_path: Path) -> None:
    contrastive = {"hard_negatives": {"per_sample": 2}, "batch_size": 8, "label_smoothing": 0.1}
    values = {"task": "contrastive", "data": {"source": "sample"}, "contrastive": contrastive}
    model = build_dual_encoder(recipe_from_dict(values, name="r").recipe, device="meta")
    model.config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["label_smoothing"] == 0.1 and not {"hard_negatives", "batch_size"} & saved.keys()


def test_pretrained_towers_keep_their_weights(
    tiny_recipe_of: RecipeOf, text_encoder_dir: Path, captions: list[str]
) -> None:
    recipe = tiny_recipe_of(
        vision={"backbone": "timm/test_efficientnet", "pretrained": False, "pooling": "avg"},
        text={"backbone": str(text_encoder_dir), "pooling": "mean"},
    )
    processor = build_dual_encoder_processor(recipe.model, recipe.data, captions)
    model = build_dual_encoder(recipe, processor.tokenizer)
    saved = torch.nn.Module.state_dict(type(model.text).from_pretrained(text_encoder_dir))
    assert all(torch.equal(value, saved[name]) for name, value in model.text.state_dict().items())
    inputs = processor(text=["grinning face", "much longer text about a dog that runs across all of the green grass"])
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].shape[1] == 16
    assert model(**inputs).text_embeds.shape == (2, 16)


def test_the_learnt_tokenizer_sizes_the_tower(tiny_recipe_of: RecipeOf, captions: list[str]) -> None:
    recipe = tiny_recipe_of()
    processor = build_dual_encoder_processor(recipe.model, recipe.data, captions[:20])
    assert 259 < len(processor.tokenizer) < 400
    model = build_dual_encoder(recipe, processor.tokenizer)
    assert model.text.get_input_embeddings().num_embeddings == len(processor.tokenizer)
    assert model.config.eot_token_id == processor.tokenizer.eos_token_id


def test_eot_needs_a_tokenizer_that_ends_texts(tiny_recipe_of: RecipeOf, text_encoder_dir: Path, tmp_path) -> None:
    recipe = tiny_recipe_of(text={"tokenizer": str(text_encoder_dir)})
    processor = build_dual_encoder_processor(recipe.model, recipe.data, [])
    tokenizer = processor.tokenizer
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(tmp_path)
    recipe = tiny_recipe_of(text={"tokenizer": str(tmp_path)})
    with pytest.raises(InputError, match=r"model\.text\.pooling: eot, but the tokenizer ends no text"):
        build_dual_encoder_processor(recipe.model, recipe.data, [])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision": {"patch_size": 5}}, r"model\.vision\.patch_size: images of 32 px do not divide into patches of 5"),
        (
            {"vision": {"backbone": "timm/test_efficientnet", "pretrained": False}},
            r"model\.vision: timm/test_efficientnet with pooling cls: pooling 'cls' needs an encoder with a class",
        ),
    ],
)
def test_impossible_towers_are_named(tiny_recipe_of: RecipeOf, changes: dict, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        build_dual_encoder(tiny_recipe_of(**changes), device="meta")


def test_going_on_from_a_release(
    tiny_recipe_of: RecipeOf,
    make_model: Callable[..., DualEncoderModel],
    tmp_path: Path,
) -> None:
    parent = make_model()
    parent.logit_scale.data.fill_(3.0)
    parent.save_pretrained(tmp_path)
    recipe = tiny_recipe_of(contrastive={"loss": "sigmoid", "same_image": "positive"}, temperature={"learn": False})
    model = load_dual_encoder(tmp_path, recipe)
    assert model.logit_scale.item() == 3.0
    assert not isinstance(model.logit_scale, torch.nn.Parameter)
    assert model.logit_bias.item() == -10.0
    assert (model.contrast.loss, model.contrast.same_image) == ("sigmoid", "positive")
    assert torch.equal(model.vision_projection.weight, parent.vision_projection.weight)


def test_a_tower_for_rectangles_takes_no_other_size(tiny_recipe_of: RecipeOf, tmp_path: Path) -> None:
    """Position embeddings of a square can be interpolated."""
    square = tiny_recipe_of()
    tall = square.model_copy(update={"data": square.data.model_copy(update={"image_size": (48, 32)})})
    model = build_dual_encoder(tall)
    assert model.get_image_features(pixel_values=torch.zeros(1, 3, 48, 32)).pooler_output.shape == (1, 16)
    for recipe, folder in ((square, "square"), (tall, "tall")):
        build_dual_encoder(recipe).save_pretrained(tmp_path / folder)
    assert load_dual_encoder(tmp_path / "tall", tall).vision.config.image_size == [48, 32]
    assert load_dual_encoder(tmp_path / "square", tall, device="meta")
    with pytest.raises(InputError, match=r"data\.image_size: init_from .*tall cannot take it: images of 32 px do not"):
        load_dual_encoder(tmp_path / "tall", square, device="meta")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"embedding_dim": 8}, r"model\.embedding_dim: 8, but init_from .* was trained with 16; set it so"),
        ({"text": {"layers": 3}}, r"model\.text\.layers: 3, but init_from .* was trained with 2; set it so"),
        ({"vision": {"pooling": "avg"}}, r"model\.vision\.pooling: 'avg', but init_from .* was trained with 'cls'"),
    ],
)
def test_a_release_of_another_shape_is_refused(
    tiny_recipe_of: RecipeOf, make_model: Callable[..., DualEncoderModel], tmp_path: Path, changes: dict, expected: str
) -> None:
    make_model().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=expected):
        load_dual_encoder(tmp_path, tiny_recipe_of(**changes), device="meta")
