"""From rows to embeddings, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from mmhf.data.images import BadImageError, decode_image
from mmhf.inference.embedders import IMAGE, TEXT, EmbedderInputs
from mmhf.inference.inputs import PredictionRows

EMPTY_TEXT = "the text is empty"


class Embedder(Protocol):
    """A model that embeds one or more modalities, each row for itself."""

    @property
    def modalities(self) -> Sequence[str]:
        """What it can embed: `image`, `text` or both."""
        ...

    @property
    def inputs(self) -> EmbedderInputs:
        """Makes its tensors."""
        ...

    def embed(self, modality: str, encoding: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings `(N, D)` of length 1, in float32 on the CPU."""
        ...


class EmbeddingExamples(Dataset):
    """Decoded rows; what cannot be embedded is None, with the reason."""

    def __init__(self, rows: PredictionRows, modalities: Sequence[str]) -> None:
        self.rows = rows
        self.modalities = modalities

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = dict.fromkeys(self.modalities)
        errors = []
        if IMAGE in example:
            try:
                example[IMAGE] = decode_image(self.rows.image(index))
            except BadImageError as error:
                errors.append(str(error))
        if TEXT in example:
            assert self.rows.texts is not None
            example[TEXT] = self.rows.texts[index] or None
            if example[TEXT] is None:
                errors.append(EMPTY_TEXT)
        return {**example, "error": "; ".join(errors) or None}


@dataclass(frozen=True)
class EncodedBatch:
    """Tensors of a batch, by modality; `present` says which of its rows they are of."""

    encodings: dict[str, dict[str, torch.Tensor]]
    present: dict[str, list[bool]]
    errors: list[str | None]


class EmbeddingCollator:
    def __init__(self, inputs: EmbedderInputs, modalities: Sequence[str]) -> None:
        self.inputs = inputs
        self.modalities = modalities

    def __call__(self, examples: Sequence[dict[str, Any]]) -> EncodedBatch:
        present = {name: [example[name] is not None for example in examples] for name in self.modalities}
        encodings = {
            name: self.inputs.encode(name, [example[name] for example in examples if example[name] is not None])
            for name in self.modalities
            if any(present[name])
        }
        return EncodedBatch(encodings, present, [example["error"] for example in examples])


def embed_batch(batch: EncodedBatch, embedder: Embedder, modalities: Sequence[str]) -> pa.Table:
    """One row for each row of the batch: `MODALITY_embedding` (null where there is nothing to embed) and `error`."""
    columns: dict[str, pa.Array] = {}
    for modality in modalities:
        present = np.asarray(batch.present[modality])
        if modality not in batch.encodings:
            columns[f"{modality}_embedding"] = pa.nulls(len(present))
            continue
        embeds = embedder.embed(modality, batch.encodings[modality]).numpy()
        columns[f"{modality}_embedding"] = _fixed_size_lists(embeds, present)
    columns["error"] = pa.array(batch.errors, pa.string())
    return pa.table(columns)


def _fixed_size_lists(embeds: np.ndarray, present: np.ndarray) -> pa.Array:
    values = np.zeros((len(present), embeds.shape[1]), np.float32)
    values[present] = embeds
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), embeds.shape[1], mask=pa.array(~present) if not present.all() else None
    )
