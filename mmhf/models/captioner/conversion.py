"""Checkpoints of the system that this captioner grew out of: `model_state_dict_*.pth`, `training_metadata_*.json`."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmhf.errors import InputError
from mmhf.models.backbones import reference_of
from mmhf.models.captioner.building import build_captioner_model, build_captioner_processor, generation_config
from mmhf.models.captioner.modeling_captioner import PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.processing_captioner import CaptionerProcessor
from mmhf.recipe.caption_data_sections import Flickr30kSection
from mmhf.recipe.captioner_recipe import CaptionerModelSection, GenerationSection

_VISION, _LANGUAGE = "clip_encoder.clip_model.", "qwen_decoder.qwen_model."
_EMBEDDINGS = f"{_LANGUAGE}model.embed_tokens.weight"
# Its later versions put this token between image and caption, and cut the embeddings to the tokenizer's size for it.
_START = "<|im_start|>"


@dataclass(frozen=True)
class SeedCheckpoint:
    """What a checkpoint of the seed says.

    Attributes:
        weights (`dict[str, Tensor]`): By the seed's names.
        hyperparameters (`dict`): Such as `learning_rate` and `max_caption_length`; empty where none were kept.
        numbers (`dict[str, dict[str, float]]`): By split: `loss` of `train`, `rougeL` of `validation`, as far as they
            were measured.
    """

    weights: dict[str, Tensor]
    hyperparameters: dict[str, Any]
    numbers: dict[str, dict[str, float]]


def read_seed_checkpoint(path: str | Path, metadata_path: str | Path | None = None) -> SeedCheckpoint:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path (`str` or `Path`): `model_state_dict_*.pth`.
        metadata_path (`str` or `Path`, *optional*): Absent: the `training_metadata_*.json` of the same time beside it,
            if there is one.

    Raises:
        InputError: The file is not such a checkpoint.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).partition(chr(10))[0]})") from error
    values = content if isinstance(content, dict) else {}
    weights = values.get("model_state_dict", values)
    if "mlp.weight" not in weights or _EMBEDDINGS not in weights:
        raise InputError(f"{path}: no captioner of CLIP, one linear layer `mlp` and Qwen in it")
    named = path.with_name(path.name.replace("model_state_dict_", "training_metadata_")).with_suffix(".json")
    described = Path(metadata_path) if metadata_path is not None else named
    if metadata_path is not None or described.is_file():
        values = {**values, **_read_json(described)}
    measured = {"train": ("loss", values.get("loss")), "validation": ("rougeL", values.get("score"))}
    numbers = {
        split: {name: float(value)} for split, (name, value) in measured.items() if isinstance(value, int | float)
    }
    return SeedCheckpoint(weights, dict(values.get("hyperparameters") or {}), numbers)


def convert_seed_checkpoint(
    checkpoint: SeedCheckpoint, section: CaptionerModelSection, *, include_frozen: bool = False
) -> tuple[PrefixCaptionerForConditionalGeneration, CaptionerProcessor]:
    """Make a captioner of a checkpoint.

    Args:
        checkpoint ([`SeedCheckpoint`]): What `read_seed_checkpoint` gave.
        section ([`CaptionerModelSection`]): Its backbones; the projector and the prompt follow from the checkpoint.
        include_frozen (`bool`): Take CLIP and Qwen, too, from the checkpoint and save them with the model; they are
            taken in any case where the backbones are folders, which a release cannot refer to.

    Raises:
        InputError: The backbones have other shapes than the checkpoint.
    """
    weights, settings = checkpoint.weights, checkpoint.hyperparameters
    length = int(settings.get("max_caption_length", 128))
    projector = section.projector.model_copy(update={"kind": "mlp", "hidden_dims": [], "prefix_length": 1})
    section = section.model_copy(update={"projector": projector, "prompt": ""})
    image_size = int(settings.get("image_size", 224))
    data = Flickr30kSection(source="flickr30k", image_size=image_size, resize="crop", max_length=length)
    processor = build_captioner_processor(section, data, [])
    model = build_captioner_model(section, processor=processor, image_size=data.image_size)
    if len(weights[_EMBEDDINGS]) == len(processor.tokenizer):
        start = processor.tokenizer.convert_tokens_to_ids(_START)
        assert isinstance(start, int)
        model.set_prompt([start])
    linear: Any = model.projector.get_submodule("layers.0")
    _copy(linear, {"weight": weights["mlp.weight"], "bias": weights["mlp.bias"]}, "mlp")
    parts = {"vision": (section.vision.backbone, _VISION), "language": (section.language.backbone, _LANGUAGE)}
    references = {part: None if include_frozen else reference_of(name) for part, (name, _) in parts.items()}
    for part, (_, prefix) in parts.items():
        if references[part] is None:
            _copy(model.get_submodule(part), _under(weights, prefix), prefix.rstrip("."))
    model.refer_to({part: reference for part, reference in references.items() if reference is not None})
    model.generation_config = generation_config(GenerationSection(max_new_tokens=length), processor)
    # Rows of the vocabulary that the checkpoint was cut by: it could not write them.
    absent = range(len(weights[_EMBEDDINGS]), model.config.language_config.vocab_size)
    model.generation_config.suppress_tokens = list(absent) or None
    return model.eval(), processor


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no readable training_metadata_*.json ({error})") from error


def _under(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


@torch.no_grad()
def _copy(module: Any, weights: dict[str, Tensor], what: str) -> None:
    """Copy what the module has; of embeddings the rows that the checkpoint has."""
    for name, value in module.state_dict().items():
        found = weights.get(name)
        if found is None or found.shape[1:] != value.shape[1:] or len(found) > len(value):
            shape = "absent" if found is None else tuple(found.shape)
            raise InputError(f"{what}: {name} is {shape}, the backbone's is {tuple(value.shape)}; name another one")
        value[: len(found)].copy_(found)
