"""The task image-text-classification: how its recipe becomes data, a model, metrics and a report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import EvalPrediction

from mmhf.data.augmentation import build_augmentation
from mmhf.data.bad_examples import BadExampleLog
from mmhf.data.collators import ImageTextCollator
from mmhf.data.loading import LoadedData, load_data
from mmhf.errors import InputError
from mmhf.evaluation.classification import ClassificationEvaluation, classification_metrics, evaluate_classification
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification, FusionProcessor
from mmhf.models.fusion.modeling_fusion import build_fusion_model
from mmhf.models.fusion.processing_fusion import build_fusion_processor
from mmhf.recipe.schema import FusionRecipe

# Settings of the architecture: a release that training starts from has decided them.
_ARCHITECTURE = ("strategy", "hidden_dims", "activation", "normalize")


class ImageTextClassification:
    """Everything about fusion classifiers that the verbs of the command line need.

    Args:
        recipe (`FusionRecipe`): The validated recipe.
    """

    def __init__(self, recipe: FusionRecipe) -> None:
        self.recipe = recipe

    def load_data(
        self, *, splits: Collection[str] | None = None, label_names: Sequence[str] | None = None
    ) -> LoadedData:
        """Read the recipe's data; `label_names`, those of a model, decide the class ids."""
        return load_data(self.recipe.data, task=self.recipe.task, label_names=label_names, splits=splits)

    def build_processor(self, parent: Path | None) -> FusionProcessor:
        """The processor of the release that training starts from, or one made for the recipe's backbones."""
        if parent is not None:
            return FusionProcessor.from_pretrained(parent)
        return build_fusion_processor(self.recipe.model, self.recipe.data)

    def build_model(
        self, label_names: Sequence[str], class_weights: list[float] | None, parent: Path | None
    ) -> FusionForImageTextClassification:
        """A model with the backbones' weights, or with those of the release that training starts from.

        Raises:
            InputError: The release has other labels or another architecture than the recipe asks for.
        """
        loss = {"label_smoothing": self.recipe.loss.label_smoothing, "class_weights": class_weights}
        if parent is None:
            return build_fusion_model(self.recipe.model, label_names=label_names, **loss)
        config = FusionConfig.from_pretrained(parent)
        self._check_architecture(config, parent)
        config.update({"dropout": self.recipe.model.fusion.dropout, **loss})
        released = [config.id2label[index] for index in range(config.num_labels)]
        if released != list(label_names):
            self._check_reset(released, label_names, parent)
            config.id2label = dict(enumerate(label_names))
            config.label2id = {name: index for index, name in enumerate(label_names)}
        return FusionForImageTextClassification.from_pretrained(
            parent, config=config, ignore_mismatched_sizes=self.recipe.model.reset_head
        )

    def _check_architecture(self, config: FusionConfig, parent: Path) -> None:
        model, fusion = self.recipe.model, self.recipe.model.fusion
        pairs = [(f"model.fusion.{name}", fusion, name, getattr(config, name)) for name in _ARCHITECTURE]
        pairs += [
            ("model.embedding_dim", model, "embedding_dim", config.embedding_dim),
            ("model.vision.backbone", model.vision, "backbone", config.vision_backbone),
            ("model.text.backbone", model.text, "backbone", config.text_backbone),
            ("model.vision.pooling", model.vision, "pooling", config.vision_pooling),
            ("model.text.pooling", model.text, "pooling", config.text_pooling),
        ]
        for key, section, name, released in pairs:
            wanted = getattr(section, name)
            if name in section.model_fields_set and wanted != released:
                raise InputError(
                    f"{key}: the recipe asks for {wanted!r} but {parent}, where training starts, has {released!r}; "
                    "drop the key, or drop init_from"
                )

    def _check_reset(self, released: Sequence[str], label_names: Sequence[str], parent: Path) -> None:
        if not self.recipe.model.reset_head:
            raise InputError(
                f"the data's labels {list(label_names)} are not those of {parent}, {list(released)}; "
                "set model.reset_head: true to start a new head"
            )

    def class_weights(self, data: LoadedData) -> list[float] | None:
        """The recipe's class weights; `balanced` ones are N / (C × count), as in scikit-learn."""
        weights = self.recipe.loss.class_weights
        if weights is None:
            return None
        if weights == "balanced":
            labels = np.asarray(data.splits["train"]["label"])
            counts = np.bincount(labels, minlength=len(data.label_names))
            if not counts.all():
                absent = data.label_names[int(np.argmin(counts))]
                raise InputError(f"loss.class_weights: balanced, but no training row has the label {absent!r}")
            return [float(weight) for weight in len(labels) / (len(counts) * counts)]
        if len(weights) != len(data.label_names):
            raise InputError(
                f"loss.class_weights: {len(weights)} weights for the {len(data.label_names)} labels {data.label_names}"
            )
        return list(weights)

    def collator(
        self,
        processor: FusionProcessor,
        *,
        split: str,
        seed: int,
        bad_examples: BadExampleLog | None = None,
    ) -> ImageTextCollator:
        """Makes batches of one split; only those of `train` are augmented."""
        augment = self.recipe.data.augment if split == "train" else None
        return ImageTextCollator(
            processor,
            augmentation=build_augmentation(augment, self.recipe.data.image_size) if augment else None,
            seed=seed,
            on_bad_image=self.recipe.data.on_bad_image,
            bad_examples=bad_examples,
            split=split,
        )

    def evaluate(self, prediction: EvalPrediction, label_names: Sequence[str]) -> dict[str, float]:
        """Metrics for Trainer, while it trains."""
        return classification_metrics(prediction.predictions, prediction.label_ids, label_names)

    def evaluate_in_full(
        self, logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str], loss: float
    ) -> ClassificationEvaluation:
        """All numbers of one split, for the report and `metrics.json`."""
        return evaluate_classification(logits, labels, label_names, loss=loss)

    def example_inputs(self, batch_size: int, device: str) -> Mapping[str, torch.Tensor]:
        """A batch of the largest shape that training can meet, to plan memory with."""
        data = self.recipe.data
        tokens = torch.ones(batch_size, data.max_length, dtype=torch.long, device=device)
        return {
            "pixel_values": torch.zeros(batch_size, 3, data.image_size, data.image_size, device=device),
            "input_ids": tokens,
            "attention_mask": tokens,
            "labels": torch.zeros(batch_size, dtype=torch.long, device=device),
        }
