"""A captioner's training images, as the neighbours that it looks up: how many there are, and what it keeps of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from mmhf.data.columns import codes_of
from mmhf.data.loading import LoadedData
from mmhf.data.table import extra_column
from mmhf.errors import InputError
from mmhf.evaluation.baselines import even_rows
from mmhf.features.choice import PartChoice
from mmhf.features.column import FeatureColumn
from mmhf.models.captioner import CaptionerProcessor
from mmhf.models.captioner.neighbours import Neighbours
from mmhf.recipe.captioner_recipe import NeighboursSection
from mmhf.tasks.frozen_features import MOST_ROWS, read_features
from mmhf.training.boundary import beside_training
from mmhf.training.stages import StagePlan, StagePosition
from mmhf.training.trainer import MMTrainer

logger = logging.getLogger(__name__)

_UNPLANNED_LENGTH = 32
"""Tokens of a caption where there is no tokenizer yet."""


def neighbour_values(
    section: NeighboursSection, data: LoadedData | None, processor: CaptionerProcessor | None
) -> dict[str, Any]:
    """What [`Neighbours`] is made with; without data, room for one image, without a processor, a token a byte.

    Raises:
        InputError: The training split is a stream.
    """
    kept: dict[str, Any] = {"count": section.count}
    if section.whiten is not None:
        kept["whiten"] = section.whiten
    if section.votes is not None:
        end = 0 if processor is None else processor.tokenizer.eos_token_id
        kept["votes"] = {**section.votes.model_dump(), "end": end}
    texts = {"before": section.before, "between": section.between, "after": section.after}
    if processor is None:
        rows = 1 if data is None else len(_known_rows(_table(data)))
        ids = {name: list(text.encode()) for name, text in texts.items()}
        return {**kept, "rows": rows, "length": _UNPLANNED_LENGTH, **ids}
    ids = dict(zip(texts, processor.tokenizer([*texts.values()], add_special_tokens=False)["input_ids"], strict=True))
    captions = [] if data is None else known_captions(_table(data), processor)
    length = max(map(len, captions), default=1)
    return {**kept, "rows": max(len(captions), 1), "length": length, **ids}


def known_captions(table: datasets.Dataset, processor: CaptionerProcessor) -> list[list[int]]:
    """The first caption of each image that is kept, as the token ids that the model writes."""
    captions = table.select_columns("captions")[:]["captions"]
    return processor.caption_ids([captions[row][0] for row in _known_rows(table)])


def refuse_neighbours_without_features(plan: StagePlan, choices: Sequence[Sequence[PartChoice]]) -> None:
    """Check that the image encoder is frozen, and that its features are stored.

    Args:
        plan ([`StagePlan`]): The stages.
        choices (`Sequence`): For each of them its frozen parts, and whether their features are stored.

    Raises:
        InputError: A stage trains the image encoder, or no features are stored, and why.
    """
    for stage in plan.stages:
        if any(group.startswith("vision.") for group in stage.curves):
            raise InputError(
                f"model.neighbours: stage {stage.name!r} trains the image encoder, and what is alike would change; "
                "leave vision out of its `train`, or remove the neighbours"
            )
    whole = [choice for choice in (choices[0] if choices else ()) if choice.part.boundary is None]
    of_images = [choice for choice in whole if choice.part.name == "vision"]
    if not any(choice.is_used and choice.for_training for choice in of_images):
        why = next((choice.why for choice in of_images if choice.why), "nothing is stored")
        raise InputError(f"model.neighbours: they are found by stored features of the images: {why}; set cache: on")


class NeighboursStart:
    """Gives a captioner its neighbours when its first stage begins; a run that is resumed has them already.

    Args:
        section ([`NeighboursSection`]): Of the recipe.
        trainer ([`MMTrainer`]): Of a captioner.
        data ([`LoadedData`]): What it trains on.
        processor ([`CaptionerProcessor`]): Its tokenizer.

    Raises:
        InputError: As of `refuse_neighbours_without_features`; the column that keeps images apart has one value.
    """

    def __init__(
        self, section: NeighboursSection, trainer: MMTrainer, data: LoadedData, processor: CaptionerProcessor
    ) -> None:
        self.trainer, self.data, self.processor = trainer, data, processor
        model: Any = trainer.plan.model
        self.neighbours: Neighbours = model.neighbours
        if section.apart is not None:
            self.neighbours.keep_apart(_apart_codes(_table(data), section.apart))
        with beside_training():
            refuse_neighbours_without_features(
                trainer.plan, [] if trainer.features is None else trainer.features.choices
            )

    def begin_stage(self, position: StagePosition) -> None:
        """Fill the model's neighbours, if this is the beginning of the run."""
        if position.index > 0 or not position.is_start:
            return
        dataset: Any = self.trainer.train_dataset
        column = dataset.columns.get("image_features")
        if not isinstance(column, FeatureColumn):
            raise InputError("model.neighbours: the features of the training images could not be stored")
        table = _table(self.data)
        rows = _known_rows(table)
        features = read_features(column, rows)
        places = np.where(np.isin(rows, list(column.faults)), -1, rows)
        self.neighbours.fill(
            torch.from_numpy(features), known_captions(table, self.processor), torch.from_numpy(places)
        )
        logger.info("Neighbours: the captions of %d training images can be looked up", int((places >= 0).sum()))


def _table(data: LoadedData) -> datasets.Dataset:
    table = data.splits.get("train")
    if not isinstance(table, datasets.Dataset):
        raise InputError("model.neighbours: the images of a stream cannot be looked up; set data.streaming: false")
    return table


def _apart_codes(table: datasets.Dataset, column: str) -> torch.Tensor:
    codes, values = codes_of(table.with_format("arrow")[:][extra_column(column)])
    if len(values) < 2:
        held = f"only {values[0]!r}" if values else "no value"
        raise InputError(f"model.neighbours.apart: column {column!r} has {held} in the training split; remove it")
    return torch.from_numpy(codes)


def _known_rows(table: datasets.Dataset) -> NDArray[np.int64]:
    return even_rows(len(table), MOST_ROWS)
