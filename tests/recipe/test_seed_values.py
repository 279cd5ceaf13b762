"""The recipes of the predecessors hold the numbers of their documents."""

from __future__ import annotations

from typing import Any

import pytest

from mmhf.recipe import load_recipe
from mmhf.training.arguments import training_arguments

ONE_CYCLE = {
    "stages.0.schedule": "one_cycle",
    "stages.0.warmup": 0.1,
    "stages.0.min_lr": 1e-6,
    "stages.0.cycle_beta1": [0.85, 0.95],
}
FAKE_NEWS: dict[str, Any] = {
    "model.embedding_dim": 512,
    "model.fusion.hidden_dims": [256],
    "model.fusion.strategy": "concat_mlp",
    "model.vision.pretrained": True,
    "model.text.backbone": "distilbert/distilbert-base-uncased",
    "model.text.pooling": "cls",
    "data.limit": 1000,
    "data.image_size": 224,
    "data.max_length": 128,
    "training.per_device_train_batch_size": 32,
    "training.weight_decay": 0.01,
    "training.dataloader_num_workers": 1,
    "training.seed": 42,
    "training.metric_for_best_model": "accuracy",
    "optimizer.name": "adamw",
    "early_stopping.patience": 5,
    "early_stopping.min_delta": 0.001,
    "stages.0.epochs": 5,
    **ONE_CYCLE,
}
MILD = {
    "data.augment.horizontal_flip": 0.5,
    "data.augment.rotation": 15,
    "data.augment.color_jitter.brightness": 0.2,
    "data.augment.color_jitter.contrast": 0.2,
    "data.augment.color_jitter.saturation": 0.2,
}
PLANTS: dict[str, Any] = {
    "model.vision.pretrained": True,
    "model.head.hidden_dim": 512,
    "model.head.dropout": [0.3, 0.15],
    "loss.label_smoothing": 0.1,
    "optimizer.name": "adamw",
    "optimizer.betas": [0.9, 0.999],
    "training.weight_decay": 1e-4,
    "training.max_grad_norm": 1.0,
    "training.full_determinism": True,
    "training.metric_for_best_model": "f1_macro",
    "unfreeze_on_plateau.metric": "f1_macro",
    "unfreeze_on_plateau.patience": 5,
    **{f"stages.{index}.epochs": epochs for index, epochs in enumerate((5, 10, 10))},
    **{f"stages.{index}.schedule": "cosine" for index in range(3)},
    **{f"stages.{index}.min_lr": 1e-7 for index in range(3)},
    "stages.0.train": ["head"],
    "stages.0.learning_rate": 1e-3,
    "stages.1.train": ["head", "vision:last 30%"],
    "stages.1.learning_rate": 1e-4,
    "stages.2.train": "all",
    "stages.2.learning_rate": {"vision": 1e-5, "head": 5e-5},
}
CLIP: dict[str, Any] = {
    "model.vision.patch_size": 16,
    "model.vision.width": 768,
    "model.vision.layers": 12,
    "model.vision.heads": 12,
    "model.text.width": 512,
    "model.text.layers": 8,
    "model.temperature.start": 0.07,
    "data.image_size": 224,
    "contrastive.batch_size": 64,
    "training.per_device_train_batch_size": 64,
    "training.num_train_epochs": 20,
    "training.learning_rate": 1e-4,
    "training.weight_decay": 1e-4,
    "training.lr_scheduler_type": "cosine",
    "training.max_grad_norm": 0,
    "training.dataloader_num_workers": 4,
    "training.save_total_limit": None,
}
CAPTIONER: dict[str, Any] = {
    "model.language.backbone": "Qwen/Qwen3-0.6B-Base",
    "model.projector.hidden_dims": [],
    "model.projector.prefix_length": 1,
    "model.freeze_vision": True,
    "model.freeze_language": True,
    "data.image_size": 224,
    "data.max_length": 128,
    "data.limit": None,
    "training.per_device_train_batch_size": 8,
    "training.learning_rate": 1e-4,
    "training.save_total_limit": None,
    "stages.0.epochs": 10,
    "stages.0.schedule": "step",
    "stages.0.decay_rate": 0.9,
    "stages.0.decay_every": 2,
    "evaluation.generate": True,
}
SEEDS: dict[str, dict[str, Any]] = {
    "fakeddit/v1.6": {
        **FAKE_NEWS,
        **MILD,
        "model.fusion.dropout": 0.5,
        "training.learning_rate": 1e-4,
        "stages.0.train": ["fusion", "head"],
        "init_from": None,
    },
    "fakeddit/v1.7": {
        **FAKE_NEWS,
        "model.fusion.dropout": 0.3,
        "training.learning_rate": 5e-5,
        "stages.0.train": "all",
        "init_from": "releases/fakeddit@v1.6",
    },
    "fakeddit/v1.8": {
        **FAKE_NEWS,
        **MILD,
        "model.fusion.dropout": 0.5,
        "training.learning_rate": 2e-5,
        "stages.0.train": "all",
        "init_from": "releases/fakeddit@v1.6",
    },
    "fakeddit/quick": {
        **FAKE_NEWS,
        "model.fusion.dropout": 0.3,
        "training.learning_rate": 1e-4,
        "stages.0.epochs": 3,
        "stages.0.train": ["fusion", "head"],
    },
    "plant_disease/resnet50": PLANTS,
    "plant_disease/efficientnet_b0": PLANTS,
    "plant_disease/mobilenetv3": PLANTS,
    "flickr30k/dual_encoder_vit_b16": CLIP,
    "flickr30k/dual_encoder_fast": {
        **CLIP,
        "model.vision.layers": 6,
        "model.text.layers": 4,
        "contrastive.batch_size": 32,
        "training.per_device_train_batch_size": 32,
        "training.num_train_epochs": 5,
        "data.limit": 5000,
    },
    "flickr30k/dual_encoder_high_performance": {
        **CLIP,
        "model.vision.width": 1024,
        "model.vision.layers": 14,
        "model.vision.heads": 16,
        "contrastive.batch_size": 128,
        "training.per_device_train_batch_size": 128,
        "training.num_train_epochs": 50,
        "training.learning_rate": 5e-4,
    },
    "flickr30k/dual_encoder_cpu": {
        **CLIP,
        "contrastive.batch_size": 8,
        "training.per_device_train_batch_size": 8,
        "training.dataloader_num_workers": 0,
        "training.use_cpu": True,
        "data.limit": 1000,
    },
    "flickr30k/captioner_clip_qwen3": CAPTIONER,
    "flickr30k/captioner_quick": {**CAPTIONER, "data.limit": 500, "stages.0.epochs": 1},
    "dermatology/harmonized": {
        "data.path": "data/{version}/metadata_all_harmonized.csv",
        "data.image_root": "data/{version}/imgs",
        "training.metric_for_best_model": "accuracy",
    },
    "dermatology/fusion": {
        "training.metric_for_best_model": "accuracy",
        "training.save_total_limit": 10,
        "checkpoints.every_epochs": 5,
    },
}


def value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values


@pytest.mark.parametrize("name", SEEDS)
def test_the_recipe_holds_the_seeds_numbers(name):
    resolved = load_recipe(name).recipe.model_dump()
    found = {key: value_at(resolved, key) for key in SEEDS[name]}
    assert found == SEEDS[name]


def test_no_limit_of_checkpoints_means_all(tmp_path):
    recipe = load_recipe("flickr30k/captioner_clip_qwen3").recipe
    assert training_arguments(recipe, str(tmp_path), has_validation=True).save_total_limit is None
    recipe = load_recipe("fakeddit/v1.6").recipe
    assert training_arguments(recipe, str(tmp_path), has_validation=True).save_total_limit == 2
