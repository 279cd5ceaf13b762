"""Turn a checkpoint of the CLIP-MLP-Qwen captioner (model_state_dict_*.pth) into a folder that mmhf loads."""

from __future__ import annotations

import argparse
import logging

import transformers
import yaml

from mmhf.errors import InputError
from mmhf.evaluation.results import write_metrics
from mmhf.files import METRICS_FILE, RECIPE_FILE
from mmhf.models.captioner.conversion import SeedCheckpoint, convert_seed_checkpoint, read_seed_checkpoint
from mmhf.recipe.captioner_recipe import CaptionerModelSection

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    transformers.logging.disable_progress_bar()
    if options.output.exists():
        raise InputError(f"{options.output}: exists; name a new folder")
    section = CaptionerModelSection.model_validate(
        {"vision": {"backbone": options.vision}, "language": {"backbone": options.language}}
    )
    checkpoint = read_seed_checkpoint(options.checkpoint, options.metadata)
    model, processor = convert_seed_checkpoint(checkpoint, section, include_frozen=options.include_frozen)
    model.save_pretrained(options.output)
    processor.save_pretrained(options.output)
    prompt = str(processor.tokenizer.decode(model.config.prompt_ids))
    recipe = yaml.safe_dump(_recipe(options, checkpoint, prompt), sort_keys=False, allow_unicode=True)
    (options.output / RECIPE_FILE).write_text(recipe, encoding="utf-8")
    write_metrics(options.output / METRICS_FILE, checkpoint.numbers)
    logger.info("Converted %s into %s", options.checkpoint, options.output)


def _recipe(options: argparse.Namespace, checkpoint: SeedCheckpoint, prompt: str) -> dict[str, object]:
    """A recipe with the seed's values that continues from the converted model."""
    settings = checkpoint.hyperparameters
    stage = {
        "name": "projector",
        "epochs": float(settings.get("num_epochs", 10)),
        "train": ["projector"],
        "schedule": "step" if settings.get("learning_rate_scheduler_enabled", True) else "constant",
    }
    if stage["schedule"] == "step":
        stage["decay_rate"] = float(settings.get("learning_rate_decay", 0.9))
        stage["decay_every"] = float(settings.get("learning_rate_decay_step", 2))
    length = int(settings.get("max_caption_length", 128))
    return {
        "task": "image-captioning",
        "model": {
            "vision": {"backbone": options.vision, "features": "projected"},
            "language": {"backbone": options.language},
            "projector": {"kind": "mlp", "hidden_dims": [], "prefix_length": 1},
            "prompt": prompt,
        },
        "data": {
            "source": "flickr30k",
            "image_size": int(settings.get("image_size", 224)),
            "resize": "crop",
            "max_length": length,
            "limit": settings.get("training_size_limit"),
        },
        "training": {
            "per_device_train_batch_size": int(settings.get("batch_size", 8)),
            "learning_rate": float(settings.get("learning_rate", 1e-4)),
        },
        "optimizer": {"name": "adam"},
        "stages": [stage],
        "generation": {"max_new_tokens": length},
    }
