"""`model_state_dict_*.pth` of the captioning program, with its `training_metadata_*.json`: CLIP, one layer, Qwen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmhf.conversion.checkpoint import Checkpoint
from mmhf.conversion.converting import Options, Parts, Predecessor
from mmhf.errors import InputError
from mmhf.files import read_json_object
from mmhf.models.backbones import reference_of
from mmhf.models.captioner.building import build_captioner_config, build_captioner_processor, generation_config
from mmhf.models.captioner.captioner_parts import fresh_vision, language_width
from mmhf.models.captioner.modeling_captioner import PrefixCaptionerForConditionalGeneration
from mmhf.models.encoders import drop_unused
from mmhf.recipe import ResolvedRecipe
from mmhf.recipe.captioner_recipe import GenerationSection

_VISION, _LANGUAGE = "clip_encoder.clip_model.", "qwen_decoder.qwen_model."
_EMBEDDINGS = f"{_LANGUAGE}model.embed_tokens.weight"
# Its later versions put this token between image and caption, and cut the embeddings to the tokenizer's size for it.
_START = "<|im_start|>"
_CLIP, _QWEN = "openai/clip-vit-base-patch32", "Qwen/Qwen3-0.6B-Base"


class Captioner(Predecessor):
    name = "captioner"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        return "mlp.weight" in checkpoint.weights and _EMBEDDINGS in checkpoint.weights

    def recipe(self, checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
        if not self.recognises(checkpoint):
            raise InputError(f"{checkpoint.path}: no captioner of CLIP, one linear layer `mlp` and Qwen in it")
        settings = _saved(checkpoint, options).get("hyperparameters") or {}
        stage: dict[str, Any] = {"name": "projector", "epochs": float(settings.get("num_epochs", 10))}
        stage |= {"train": ["projector"], "schedule": "constant"}
        if settings.get("learning_rate_scheduler_enabled", True):
            stage["schedule"] = "step"
            stage["decay_rate"] = float(settings.get("learning_rate_decay", 0.9))
            stage["decay_every"] = float(settings.get("learning_rate_decay_step", 2))
        length = int(settings.get("max_caption_length", 128))
        return {
            "task": "image-captioning",
            "model": {
                "vision": {"backbone": options.vision or _CLIP, "features": "projected"},
                "language": {"backbone": options.text or _QWEN},
                "projector": {"kind": "mlp", "hidden_dims": [], "prefix_length": 1},
                "prompt": "",
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

    def parts(self, checkpoint: Checkpoint, resolved: ResolvedRecipe, options: Options) -> Parts:
        recipe: Any = resolved.recipe
        section, data, weights = recipe.model, recipe.data, checkpoint.weights
        processor = build_captioner_processor(section, data, [])
        config = build_captioner_config(section, processor=processor, image_size=data.image_size)
        assert config.vision_output is not None
        rows = len(weights[_EMBEDDINGS])
        if rows == len(processor.tokenizer) and not config.prompt_ids:
            start = processor.tokenizer.convert_tokens_to_ids(_START)
            if not isinstance(start, int):
                raise InputError(
                    f"{checkpoint.path}: its captions begin with {_START}, which the tokenizer of "
                    f"{section.language.backbone} does not know; name another one with --text"
                )
            config.prompt_ids = [start]
        with torch.device("meta"):
            vision: Any = fresh_vision(config.vision_config, config.vision_features)
            drop_unused(vision, tuple(config.vision_output["unused"]))
            skeleton = PrefixCaptionerForConditionalGeneration(config, vision=vision)
        places = {"vision": (section.vision.backbone, _VISION), "language": (section.language.backbone, _LANGUAGE)}
        tensors = _projector(checkpoint, (language_width(config), config.vision_output["width"]))
        references = {}
        for part, (backbone, prefix) in places.items():
            reference = None if options.include_frozen else reference_of(backbone)
            if reference is None:
                tensors |= _part(checkpoint, skeleton.get_submodule(part), part, prefix)
            else:
                references[part] = reference
            # CLIP has a text tower, too, and what is only referred to is not read.
            checkpoint.used.update(name for name in weights if name.startswith(prefix))
        config.references = references
        generation = generation_config(GenerationSection(max_new_tokens=data.max_length), processor)
        # Rows of the vocabulary that the checkpoint was cut by: it could not write them.
        generation.suppress_tokens = list(range(rows, config.language_config.vocab_size)) or None
        absent = tuple(f"{part}." for part in references)
        return Parts(
            PrefixCaptionerForConditionalGeneration, config, tensors, processor, absent, generation_config=generation
        )

    def numbers(self, checkpoint: Checkpoint, options: Options) -> dict[str, dict[str, float]]:
        saved = _saved(checkpoint, options)
        measured = {"train": ("loss", saved.get("loss")), "validation": ("rougeL", saved.get("score"))}
        return {
            split: {name: float(value)} for split, (name, value) in measured.items() if isinstance(value, (int, float))
        }


def _saved(checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
    """What the checkpoint and the file of metadata beside it say."""
    path = checkpoint.path
    named = path.with_name(path.name.replace("model_state_dict_", "training_metadata_")).with_suffix(".json")
    described = options.metadata or named
    if options.metadata is None and not described.is_file():
        return checkpoint.values
    return {**checkpoint.values, **read_json_object(described)}


def _projector(checkpoint: Checkpoint, shape: tuple[int, int]) -> dict[str, Tensor]:
    weight = checkpoint.weights["mlp.weight"]
    if tuple(weight.shape) != shape:
        raise InputError(
            f"{checkpoint.path}: mlp.weight is {tuple(weight.shape)}, the backbones need {shape}; name others with "
            "--vision and --text"
        )
    names = {"projector.layers.0.weight": "mlp.weight", "projector.layers.0.bias": "mlp.bias"}
    return checkpoint.take(names)


def _part(checkpoint: Checkpoint, module: torch.nn.Module, part: str, prefix: str) -> dict[str, Tensor]:
    """CLIP's image tower or Qwen out of the checkpoint; embeddings get the rows that the checkpoint was cut by."""
    taken: dict[str, Tensor] = {}
    for name, like in module.state_dict().items():
        found = checkpoint.weights.get(f"{prefix}{name}")
        if found is None or found.shape[1:] != like.shape[1:] or len(found) > len(like):
            shape = "absent" if found is None else tuple(found.shape)
            raise InputError(
                f"{checkpoint.path}: {prefix}{name} is {shape}, the backbone's is {tuple(like.shape)}; name another "
                f"with --{'vision' if part == 'vision' else 'text'}"
            )
        if len(found) < len(like):
            found = torch.cat([found, torch.zeros(len(like) - len(found), *like.shape[1:], dtype=found.dtype)])
        taken[f"{part}.{name}"] = found
    return taken
