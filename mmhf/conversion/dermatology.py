"""`best_model.pth` of the dermatology program: an image backbone, two projections, a classifier; texts embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmhf.conversion.checkpoint import Checkpoint
from mmhf.conversion.converting import Options, Parts, Predecessor, class_names
from mmhf.conversion.encoders import FoundEncoder, find_image_encoder, kept_of, prefixed
from mmhf.conversion.fusion_layers import FusionLayers
from mmhf.conversion.seed_embeddings import write_text_table
from mmhf.data.text_embeddings import read_table_encoder
from mmhf.errors import InputError
from mmhf.inference.text_embedders import KNOWN_ENCODERS, TextEncoding, load_text_embedder
from mmhf.models.backbones import load_encoder, load_encoder_config
from mmhf.models.encoders import drop_unused
from mmhf.models.fusion.building import build_fusion_config, build_fusion_processor
from mmhf.models.fusion.modeling_fusion import FusionForImageTextClassification
from mmhf.models.text_tables import TableEncoder
from mmhf.recipe import ResolvedRecipe

_TEXT = "pubmedbert"
_STATES = ("vision_model", "multimodal_classifier")


class Dermatology(Predecessor):
    name = "dermatology"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        settings = checkpoint.settings
        return any(name.startswith(f"{_STATES[1]}.") for name in checkpoint.weights) or _STATES[1] in settings

    def recipe(self, checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
        settings = checkpoint.settings
        own, vision_settings = (
            settings.get(_STATES[1]) or {},
            settings.get("vision_model") or settings.get("vision") or {},
        )
        text, encoding = _text(checkpoint, options)
        width = int(load_encoder_config(text, modality="text").hidden_size)
        vision, layers, pooling = self._find(checkpoint, options, width)
        labels = class_names(checkpoint, layers.num_classes, options)
        section = layers.model_section(
            str(own.get("final_activation", "relu")),
            float(own.get("final_dropout", 0.3)),
            float(own.get("projection_dropout", 0.2)),
        )
        section["fusion"]["normalize"] = bool(own.get("use_l2_normalization", False))
        text_section = {"backbone": text, "pooling": encoding.pooling}
        if options.embeddings is not None:
            text_section["embeddings"] = str(options.embeddings)
        size = vision_settings.get("img_size") or settings.get("data", {}).get("img_size") or [224, 224]
        weight = float(own.get("auxiliary_loss_weight", 0.3))
        return {
            "task": "image-text-classification",
            "model": {
                "vision": {"backbone": vision.backbone, "pooling": str(vision_settings.get("pooling_type", pooling))},
                "text": text_section,
                "freeze_text": options.embeddings is None,
                **section,
            },
            "data": {
                "source": "table",
                "path": "data/{version}/metadata_all_harmonized.csv",
                "image_root": "data/{version}/imgs",
                "version": "dataset_v1",
                "columns": {"image": "filename", "text": "text_desc", "label": "label"},
                "labels": {name: name for name in labels},
                "image_size": [int(side) for side in size],
                "max_length": encoding.max_length,
                "on_empty_text": "mask",
            },
            "loss": {"auxiliary_weight": dict.fromkeys(layers.auxiliary, weight)},
            "training": {"per_device_train_batch_size": 32, "metric_for_best_model": "accuracy"},
        }

    def parts(self, checkpoint: Checkpoint, resolved: ResolvedRecipe, options: Options) -> Parts:
        recipe: Any = resolved.recipe
        section = recipe.model
        table = None
        if section.text.embeddings is not None:
            table = TableEncoder.from_dict(read_table_encoder(section.text.embeddings))
        config = build_fusion_config(
            section,
            label_names=list(recipe.data.labels.values()),
            missing_modalities=["text"],
            text_table=table,
        )
        config.auxiliary_weights = recipe.loss.auxiliary_weights()
        assert config.vision_output is not None and config.text_output is not None
        vision, layers, _ = self._find(checkpoint, options, int(config.text_output["width"]))
        if "densenet" in vision.backbone:
            # The program pools what `features` gives, without the ReLU that torchvision has behind it.
            config.vision_config.last_activation = False
        kept = kept_of(config.vision_config, config.vision_output["unused"], vision.names)
        checkpoint.used.update(vision.names.values())
        tensors = {**checkpoint.take(prefixed("vision.", kept)), **layers.tensors(checkpoint)}
        if table is None:
            # The text encoder, which the program's checkpoint does not hold.
            encoder = load_encoder(section.text.backbone, config.text_config, pretrained=True)
            drop_unused(encoder, tuple(config.text_output["unused"]))
            tensors |= {f"text.{name}": tensor for name, tensor in encoder.state_dict().items()}
        processor = build_fusion_processor(section, recipe.data, text_table=table)
        return Parts(FusionForImageTextClassification, config, tensors, processor)

    def _find(self, checkpoint: Checkpoint, options: Options, width: int) -> tuple[FoundEncoder, FusionLayers, str]:
        checkpoint.notes.clear()
        settings = checkpoint.settings
        name = (settings.get("vision_model") or settings.get("vision") or {}).get("name")
        vision = find_image_encoder(checkpoint, options.vision or (f"torchvision/{name}" if name else None))
        inside = set(vision.names.values())
        rest = Checkpoint(checkpoint.path, checkpoint.values, checkpoint.weights, inside, checkpoint.notes)
        doubled = [linear.inputs for group in rest.linears() for linear in group[:1]]
        # `concat` pooling gives the average and the maximum.
        pooling = "concat" if vision.width not in doubled and 2 * vision.width in doubled else "avg"
        pooling = "cls" if "/vit_" in vision.backbone else pooling
        return vision, FusionLayers.find(rest, vision.width * (2 if pooling == "concat" else 1), width), pooling


def _text(checkpoint: Checkpoint, options: Options) -> tuple[str, TextEncoding]:
    """The text encoder's name in a recipe, and how it was used."""
    settings = checkpoint.settings.get("encoder") or {}
    name = options.text or str(settings.get("model_name", _TEXT))
    known = KNOWN_ENCODERS.get(name)
    pooling = str(settings.get("pooling_type") or (known.pooling if known else "cls"))
    encoding = TextEncoding(pooling=pooling, max_length=int(settings.get("max_length", 512)))
    return (known.backbone if known else name), encoding


def import_embeddings(checkpoint: Checkpoint, options: Options, target: Path) -> Path:
    """Write the program's parquet file of text embeddings as a table that mmhf looks texts up in.

    Args:
        checkpoint ([`Checkpoint`]): Says which encoder made them, unless the user does.
        options ([`Options`]): `embeddings`, `texts`.
        target (`Path`): The file to write.

    Raises:
        InputError: It has no texts and none are given, or its embeddings are not of the encoder's width.
    """
    assert options.embeddings is not None
    text, encoding = _text(checkpoint, options)
    with torch.no_grad():
        facts = load_text_embedder(text, encoding, device=torch.device("cpu")).facts
    if not options.embeddings.is_file():
        raise InputError(f"--embeddings {options.embeddings}: no such file")
    write_text_table(options.embeddings, options.texts, facts.to_dict(), target)
    return target
