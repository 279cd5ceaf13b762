"""Labels and numbers for every row of a table, one predictor for each kind of target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch
from transformers import PreTrainedModel

from mmhf.conventions import Processor
from mmhf.errors import InputError
from mmhf.inference.inputs import COLUMNS, IMAGE, TEXT
from mmhf.inference.jobs import Batch, place_rows
from mmhf.inference.loading import columns_of, takes_text
from mmhf.inference.predictors import ROW, PredictionCollator
from mmhf.models.classification_loss import class_names
from mmhf.models.ordinal_loss import median_classes
from mmhf.models.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL, target_of


class LabelPredictor(ABC):
    """What classifiers have in common: a column `PREFIX_NAME` for each label, and those of the answer.

    Args:
        model (`PreTrainedModel`): A classifier in eval mode, on its device.
        processor (`Processor`): Of the model.
    """

    verb = "predicting"
    prefix = "probability"

    def __init__(self, model: PreTrainedModel, processor: Processor) -> None:
        self.model = model
        self.target = target_of(model.config)
        self.label_names = class_names(model)
        both = takes_text(model)
        columns, self.reads = columns_of(model), (IMAGE, TEXT) if both else (IMAGE,)
        if columns is not None:
            self.reads = (*self.reads, COLUMNS)
        missing, hidden = (list(model.config.missing_modalities), model.config.mask) if both else ([], None)
        self.collator = PredictionCollator(processor, with_text=both, missing=missing, hidden=hidden, columns=columns)

    @staticmethod
    def of(
        model: PreTrainedModel,
        processor: Processor,
        *,
        threshold: float | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> LabelPredictor:
        """The predictor of a classifier, with what `predict_table` was told.

        Raises:
            InputError: Options of generation, which belong to captions.
        """
        if generation:
            raise InputError("generation: the model predicts labels, and writes no captions")
        target = target_of(model.config)
        if target in (SINGLE_LABEL, MULTI_LABEL):
            kind = ClassificationPredictor if target is SINGLE_LABEL else LabelSetPredictor
            return kind(model, processor, threshold=threshold)
        if threshold is not None:
            raise InputError(f"threshold: the model was trained on {target.learns}, and knows none")
        return (NumberPredictor if target is REGRESSION else OrdinalPredictor)(model, processor)

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns that are made."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        names: list[str] = self.schema.names
        return names

    def make(self, batch: Batch) -> pa.Table:
        """One row of `schema` for each row of the batch, null where it cannot be predicted."""
        made = self.predict(batch.encodings[ROW]) if batch.encodings else self.schema.empty_table()
        return place_rows(made, batch.counts[ROW])

    @torch.inference_mode()
    def predict(self, encoding: Mapping[str, torch.Tensor]) -> pa.Table:
        """One row of `schema` for each encoded row."""
        inputs = {name: tensor.to(self.model.device) for name, tensor in encoding.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return self.answer(self.model(**inputs).logits)

    def answer(self, logits: torch.Tensor) -> pa.Table:
        """One row of `schema` for each of (B, C) logits of the model."""
        columns = self._answer(self.target.scores(logits))
        arrays = [pa.array(columns[each.name], each.type) for each in self.schema]
        return pa.table(arrays, schema=self.schema)

    @abstractmethod
    def _answer(self, scores: torch.Tensor) -> dict[str, list[Any]]:
        """The columns of `schema`, of (B, C) probabilities or numbers."""

    def _score_fields(self) -> list[tuple[str, pa.DataType]]:
        return [(f"{self.prefix}_{name}", pa.float64()) for name in self.label_names]

    def _score_columns(self, scores: torch.Tensor) -> dict[str, list[Any]]:
        names = [name for name, _ in self._score_fields()]
        return dict(zip(names, scores.T.tolist(), strict=True))


class ClassificationPredictor(LabelPredictor):
    """Makes the columns `label`, `probability_<label>` and `confidence`, the probability of the predicted label.

    A model with an abstention threshold gives the column `abstained`, too: whether the confidence is below it.

    Args:
        model, processor: See [`LabelPredictor`].
        threshold (`float`, *optional*): Two classes only: the second label is predicted from this probability on;
            absent: the more probable label.

    Raises:
        InputError: The model has other than two labels, and there is a threshold.
    """

    def __init__(self, model: PreTrainedModel, processor: Processor, *, threshold: float | None = None) -> None:
        super().__init__(model, processor)
        self.threshold = threshold
        if threshold is not None and len(self.label_names) != 2:
            raise InputError(f"threshold: the model has {len(self.label_names)} labels, a threshold needs two")

    @property
    def schema(self) -> pa.Schema:
        abstained = [] if self.model.config.abstain_below is None else [("abstained", pa.bool_())]
        return pa.schema([("label", pa.string()), *self._score_fields(), ("confidence", pa.float64()), *abstained])

    def _answer(self, scores: torch.Tensor) -> dict[str, list[Any]]:
        chosen = scores.argmax(dim=-1) if self.threshold is None else (scores[:, 1] >= self.threshold).long()
        confidence = scores.gather(1, chosen[:, None])[:, 0]
        columns: dict[str, list[Any]] = {
            "label": [self.label_names[index] for index in chosen.tolist()],
            **self._score_columns(scores),
            "confidence": confidence.tolist(),
        }
        if self.model.config.abstain_below is not None:
            columns["abstained"] = (confidence < self.model.config.abstain_below).tolist()
        return columns


class LabelSetPredictor(LabelPredictor):
    """Makes the columns `labels`, a list of names, the most probable first, and `probability_<label>`.

    Args:
        model, processor: See [`LabelPredictor`].
        threshold (`float`, *optional*): The probability from which on any label is given; absent: each label's own, as
            the model keeps it.
    """

    def __init__(self, model: PreTrainedModel, processor: Processor, *, threshold: float | None = None) -> None:
        super().__init__(model, processor)
        own = model.config.thresholds or [0.5] * len(self.label_names)
        self.thresholds = torch.tensor(own if threshold is None else [threshold] * len(own), dtype=torch.float64)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("labels", pa.list_(pa.string())), *self._score_fields()])

    def _answer(self, scores: torch.Tensor) -> dict[str, list[Any]]:
        given = scores >= self.thresholds
        order = scores.argsort(dim=1, descending=True, stable=True).tolist()
        labels = [
            [self.label_names[place] for place in places if row[place]]
            for places, row in zip(order, given.tolist(), strict=True)
        ]
        return {"labels": labels, **self._score_columns(scores)}


class OrdinalPredictor(LabelPredictor):
    """Makes the columns `label`, `probability_<label>` and `confidence`, the probability of the predicted label.

    The predicted label is the median of the ordered classes, see `median_classes`.
    """

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("label", pa.string()), *self._score_fields(), ("confidence", pa.float64())])

    def _answer(self, scores: torch.Tensor) -> dict[str, list[Any]]:
        chosen = median_classes(scores)
        return {
            "label": [self.label_names[index] for index in chosen.tolist()],
            **self._score_columns(scores),
            "confidence": scores.gather(1, chosen[:, None])[:, 0].tolist(),
        }


class NumberPredictor(LabelPredictor):
    """Makes a column `predicted_<name>` for each number."""

    prefix = "predicted"

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(self._score_fields())

    def _answer(self, scores: torch.Tensor) -> dict[str, list[Any]]:
        return self._score_columns(scores)
