"""Zero-shot classification of labelled images by a dual encoder, while it trains and when it has."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from mmhf.data.collators import ImageCollator
from mmhf.data.datasets import RowDataset
from mmhf.data.loading import LoadedData
from mmhf.errors import InputError
from mmhf.evaluation.retrieval import fill_templates, zero_shot_class_embeddings, zero_shot_metrics
from mmhf.models.dual_encoder import DualEncoderProcessor
from mmhf.recipe.dual_encoder_recipe import ZeroShotSection


class ZeroShotProbe:
    """Measures a trainer's dual encoder on labelled images.

    Args:
        section (`ZeroShotSection`): The prompts.
        data (`LoadedData`): The images.
        processor (`DualEncoderProcessor`): Makes the model's inputs.

    Raises:
        InputError: A template has no place for the class.
    """

    def __init__(self, section: ZeroShotSection, data: LoadedData, processor: DualEncoderProcessor) -> None:
        fill_templates("class", section.templates)
        self.section = section
        self.data = data
        self.processor = processor

    def measure(self, trainer: Trainer, split: str) -> dict[str, float]:
        """The numbers that `ZERO_SHOT_PROTOCOLS` defines; none when the labelled data has no such split.

        Raises:
            InputError: The split is a stream.
        """
        rows = self.data.splits.get(split)
        if rows is None:
            return {}
        if not isinstance(rows, datasets.Dataset):
            raise InputError("evaluation.zero_shot.data: a stream cannot be measured; set streaming: false")
        assert isinstance(trainer.model, torch.nn.Module)
        was_training = trainer.model.training
        trainer.model.eval()
        try:
            classes = zero_shot_class_embeddings(
                functools.partial(self._embed_texts, trainer), self.data.label_names, self.section.templates
            )
            images, labels = self._embed_images(trainer, rows, split)
        finally:
            trainer.model.train(was_training)
        return zero_shot_metrics(images, classes, labels)

    def _embed_texts(self, trainer: Trainer, texts: Sequence[str]) -> torch.Tensor:
        inputs = self.processor(text=list(texts)).to(trainer.args.device)
        embeds: torch.Tensor = _model(trainer)(**inputs).text_embeds
        return embeds

    @torch.no_grad()
    def _embed_images(self, trainer: Trainer, rows: datasets.Dataset, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        collator = ImageCollator(
            self.processor.image_processor, on_bad_image=self.section.data.on_bad_image, split=f"zero-shot {split}"
        )
        loader = DataLoader(
            RowDataset(rows),
            batch_size=trainer.args.per_device_eval_batch_size,
            num_workers=trainer.args.dataloader_num_workers,
            collate_fn=collator,
        )
        images, labels = [], []
        for batch in trainer.accelerator.prepare_data_loader(loader):
            embeds = _model(trainer)(pixel_values=batch["pixel_values"]).image_embeds
            found = trainer.accelerator.gather_for_metrics((embeds.float(), batch["labels"]))
            images.append(found[0].cpu())
            labels.append(found[1].cpu())
        return torch.cat(images), torch.cat(labels)


def _model(trainer: Trainer) -> torch.nn.Module:
    model = trainer.model_wrapped
    assert isinstance(model, torch.nn.Module)
    return model
