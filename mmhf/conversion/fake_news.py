"""`best_model_1.6.pth` of the fake-news program: EfficientNet-B0, DistilBERT, two projections and a dense head."""

from __future__ import annotations

import re
from typing import Any

from mmhf.conversion.checkpoint import Checkpoint
from mmhf.conversion.converting import Options, Parts, Predecessor, class_names, number_of
from mmhf.conversion.encoders import FoundEncoder, find_image_encoder, find_text_encoder, kept_of, prefixed
from mmhf.conversion.fusion_layers import FusionLayers
from mmhf.models.fusion.building import build_fusion_config, build_fusion_processor
from mmhf.models.fusion.modeling_fusion import FusionForImageTextClassification
from mmhf.recipe import ResolvedRecipe

_TEXT = "distilbert/distilbert-base-uncased"
_WORDS = "embeddings.word_embeddings.weight"
_VERSION = re.compile(r"\d+(?:\.\d+)+")
_DROPOUTS = {"1.6": 0.5, "1.7": 0.3, "1.8": 0.5}


class FakeNews(Predecessor):
    name = "fake-news"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        # Qwen's and CLIP's embeddings have other names.
        return any(name.endswith(_WORDS) for name in checkpoint.weights)

    def recipe(self, checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
        vision, layers = self._find(checkpoint, options)
        settings = checkpoint.settings
        version = version_of(checkpoint)
        dropout = float(settings.get("dropout_rate", _DROPOUTS.get(version or "", 0.5)))
        labels = class_names(checkpoint, layers.num_classes, options)
        return {
            "task": "image-text-classification",
            "model": {
                "vision": {"backbone": vision.backbone, "pooling": "avg"},
                "text": {"backbone": options.text or _TEXT, "pooling": "cls"},
                **layers.model_section("relu", dropout, 0.3),
            },
            "data": {
                "source": "table",
                "path": "data/fakeddit.csv",
                "columns": {"image": "image_path", "text": "text_content", "label": "label"},
                "labels": {str(number): name for number, name in enumerate(labels)},
                "image_size": int(settings.get("image_size", 224)),
                "max_length": int(settings.get("max_length", 128)),
            },
            "training": {
                "per_device_train_batch_size": int(settings.get("batch_size", 32)),
                "num_train_epochs": float(settings.get("num_epochs", 5)),
                "learning_rate": float(settings.get("learning_rate", 2e-5)),
                "weight_decay": float(settings.get("weight_decay", 0.01)),
                "metric_for_best_model": "accuracy",
            },
        }

    def parts(self, checkpoint: Checkpoint, resolved: ResolvedRecipe, options: Options) -> Parts:
        recipe: Any = resolved.recipe
        vision, layers = self._find(checkpoint, options)
        config = build_fusion_config(recipe.model, label_names=list(recipe.data.labels.values()))
        _, names = find_text_encoder(checkpoint, recipe.model.text.backbone)
        assert config.vision_output is not None and config.text_output is not None
        kept = {
            **prefixed("vision.", kept_of(config.vision_config, config.vision_output["unused"], vision.names)),
            **prefixed("text.", kept_of(config.text_config, config.text_output["unused"], names)),
        }
        checkpoint.used.update([*vision.names.values(), *names.values()])
        tensors = {**checkpoint.take(kept), **layers.tensors(checkpoint)}
        processor = build_fusion_processor(recipe.model, recipe.data)
        return Parts(FusionForImageTextClassification, config, tensors, processor)

    def numbers(self, checkpoint: Checkpoint, options: Options) -> dict[str, dict[str, float]]:
        found = {"loss": number_of(checkpoint, "val_loss"), "accuracy": number_of(checkpoint, "val_accuracy")}
        return {"validation": {name: value for name, value in found.items() if value is not None}}

    def _find(self, checkpoint: Checkpoint, options: Options) -> tuple[FoundEncoder, FusionLayers]:
        checkpoint.notes.clear()
        vision = find_image_encoder(checkpoint, options.vision)
        config, names = find_text_encoder(checkpoint, options.text or _TEXT)
        # What the encoders hold is left out while the layers behind them are looked for.
        inside = {*vision.names.values(), *names.values()}
        rest = Checkpoint(checkpoint.path, checkpoint.values, checkpoint.weights, inside, checkpoint.notes)
        return vision, FusionLayers.find(rest, vision.width, int(config.hidden_size))


def version_of(checkpoint: Checkpoint) -> str | None:
    """The version in a file's name: `1.6` of `best_model_1.6.pth`."""
    found = _VERSION.findall(checkpoint.path.stem)
    return found[-1] if found else None
