"""Embeddings of a table's images and texts, by a dual encoder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPModel,
    PreTrainedModel,
    SiglipModel,
    VisionTextDualEncoderModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mmhf.conventions import Processor
from mmhf.data.pixels import PicturePreparer
from mmhf.errors import InputError
from mmhf.inference.inputs import IMAGE, TEXT, Example, TableRows, model_hash
from mmhf.inference.jobs import EMBEDDING_SUFFIX, Batch, JobSettings, JobSummary, place_rows
from mmhf.inference.loading import load_model, load_with, model_type_of
from mmhf.inference.outputs import check_output, refuse_existing
from mmhf.inference.table_job import TableJob
from mmhf.models.classification_loss import class_probabilities
from mmhf.models.contrastive_loss import unit_prefix
from mmhf.models.dual_encoder.modeling_dual_encoder import MAX_LOGIT_SCALE, DualEncoderModel
from mmhf.models.family import families

SOURCE_KEY = b"mmhf.source"
"""Key of a parquet file's metadata with what a search needs to know: the model's folder, the images' folder, and the
columns."""
EMPTY_TEXT = "the text is empty"
# Dual encoders of transformers.
_STOCK_MODEL_TYPES = frozenset(
    model_class.config_class.model_type
    for model_class in (CLIPModel, SiglipModel, VisionTextDualEncoderModel)
    if model_class.config_class is not None
)


class Embedder(Protocol):
    """A model that embeds one or more modalities, each row by itself."""

    @property
    def modalities(self) -> Sequence[str]:
        """What it can embed: `image`, `text` or both."""
        ...

    @property
    def inputs(self) -> EmbedderInputs:
        """Makes its tensors."""
        ...

    def embed(self, modality: str, encoding: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings `(N, D)` in float32 on the CPU."""
        ...


class EmbedderInputs:
    """Makes tensors of images and texts. It holds no model, so that data loaders' processes can have it.

    Args:
        processor (`Processor`): Called with `images` or `text`.
        padding (`bool` or `str`, defaults to `True`): How texts are padded.
    """

    def __init__(self, processor: Processor, *, padding: bool | str = True) -> None:
        self.prepare = PicturePreparer(processor)
        self.processor: Processor = self.prepare.processor
        self.padding = padding

    def encode(self, modality: str, values: Sequence[torch.Tensor] | Sequence[str]) -> dict[str, torch.Tensor]:
        """Tensors of decoded images, or of texts, cut to what the model takes.

        Args:
            modality (`str`): `image` or `text`.
            values (`Sequence`): N of these; images as uint8 pixels (3, H, W).
        """
        if modality == IMAGE:
            pictures = [self.prepare(value) for value in values if isinstance(value, torch.Tensor)]
            return dict(self.processor(images=pictures, return_tensors="pt"))
        return dict(self.processor(text=list(values), padding=self.padding, truncation=True, return_tensors="pt"))


class DualEncoderEmbedder:
    """Embeds with a dual encoder: mmhf's own or one of transformers.

    Args:
        model (`PreTrainedModel`): In eval mode, on its device.
        processor (`Processor`): Of the model; called with `images` or `text`.
        dimensions (`int`, *optional*): Give so many numbers of each embedding, see `check_dimensions`; absent: all.

    Raises:
        InputError: The model cannot do with so many.
    """

    modalities = (IMAGE, TEXT)

    def __init__(self, model: PreTrainedModel, processor: Processor, *, dimensions: int | None = None) -> None:
        self.model: Any = model
        self.dimensions = dimensions
        if dimensions is not None:
            self.check_dimensions(dimensions)
        # SigLIP was trained on texts of full length only (transformers 5.23 pads so in its pipeline too).
        self.inputs = EmbedderInputs(processor, padding="max_length" if isinstance(model, SiglipModel) else True)

    @torch.inference_mode()
    def embed(self, modality: str, encoding: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings `(N, D)` of length 1, in float32 on the CPU.

        Args:
            modality (`str`): Of what.
            encoding (`Mapping[str, torch.Tensor]`): What `inputs` made of N images or texts.
        """
        device, dtype = self.model.device, self.model.dtype
        inputs = {
            name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in encoding.items()
        }
        features = self.model.get_image_features if modality == IMAGE else self.model.get_text_features
        output = features(**inputs)
        # transformers 5 gives the whole output, 4 gave the tensor.
        embeds: Any = output.pooler_output if isinstance(output, BaseModelOutputWithPooling) else output
        unit = torch.nn.functional.normalize(embeds.float(), dim=-1)
        return (unit if self.dimensions is None else unit_prefix(unit, self.dimensions)).cpu()

    def check_dimensions(self, dimensions: int) -> None:
        """Raise `InputError` unless the first so many numbers of an embedding are an embedding by themselves.

        This holds of models that were trained with `contrastive.matryoshka`, between its sizes, too.
        """
        config = self.model.config
        if not isinstance(self.model, DualEncoderModel) or not config.matryoshka:
            raise InputError(
                f"dimensions: {dimensions}, but the model was not trained for fewer numbers; train it with "
                "contrastive.matryoshka"
            )
        if not 1 <= dimensions <= config.embedding_dim:
            raise InputError(
                f"dimensions: {dimensions}, but embeddings have {config.embedding_dim} numbers (trained sizes: "
                f"{', '.join(map(str, config.matryoshka))})"
            )

    def probabilities(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """How probable each text is for each image, as transformers' `zero-shot-image-classification` has it.

        Args:
            images (`torch.Tensor` of shape `(N, D)`): Embeddings, as `embed` gives them.
            texts (`torch.Tensor` of shape `(M, D)`): The same of texts.

        Returns:
            `torch.Tensor` of shape `(N, M)`: Rows add up to 1, except of SigLIP, for which each text stands alone.
        """
        scale = self.model.logit_scale.detach().float().cpu()
        if isinstance(self.model, DualEncoderModel):
            scale = scale.clamp(max=math.log(MAX_LOGIT_SCALE))
        logits = scale.exp() * (images @ texts.T)
        bias = getattr(self.model, "logit_bias", None)
        if bias is not None:
            logits = logits + bias.detach().float().cpu()
        return torch.sigmoid(logits) if isinstance(self.model, SiglipModel) else class_probabilities(logits)


def load_embedder(
    model_dir: str | Path, *, device: torch.device | None = None, dimensions: int | None = None
) -> DualEncoderEmbedder:
    """Load the dual encoder of a run or release folder, or of a folder that transformers saved.

    Raises:
        InputError: The folder is absent, holds another kind of model, or its files are damaged or incomplete; or the
            model was not trained for fewer `dimensions` than it has.
    """
    path = Path(model_dir)
    model_type = model_type_of(path)
    if model_type in _STOCK_MODEL_TYPES:
        return DualEncoderEmbedder(*load_with(path, AutoModel, AutoProcessor, device=device), dimensions=dimensions)
    family = families().get(model_type)
    if family is None or family.embedder is None:
        raise InputError(f"{path}: a {model_type} model; embedding needs a dual encoder")
    embedder: DualEncoderEmbedder = family.load("embedder")(*load_model(path, device=device), dimensions=dimensions)
    return embedder


class EmbeddingCollator:
    """Encodes the images and texts that rows have; a row's captions are all encoded.

    Args:
        inputs ([`EmbedderInputs`]): Makes tensors.
        modalities (`Sequence[str]`): `image`, `text` or both.
    """

    def __init__(self, inputs: EmbedderInputs, modalities: Sequence[str]) -> None:
        self.inputs = inputs
        self.modalities = modalities

    def __call__(self, examples: Sequence[Example]) -> Batch:
        values: dict[str, list[Any]] = {name: [] for name in self.modalities}
        counts: dict[str, list[int]] = {name: [] for name in self.modalities}
        errors: list[str | None] = []
        for each in examples:
            reasons = []
            if IMAGE in values:
                values[IMAGE] += [] if each.image is None else [each.image]
                counts[IMAGE].append(int(each.image is not None))
                reasons += [] if each.image_error is None else [each.image_error]
            if TEXT in values:
                values[TEXT] += each.texts
                counts[TEXT].append(len(each.texts))
                reasons += [] if each.texts else [EMPTY_TEXT]
            errors.append("; ".join(reasons) or None)
        encodings = {name: self.inputs.encode(name, given) for name, given in values.items() if given}
        return Batch(encodings, counts, errors)


class RowEmbedder:
    """Makes the columns `image_embedding` and `text_embedding`; a row's captions have one, their mean direction.

    Args:
        embedder ([`Embedder`]): The model.
        modalities (`Sequence[str]`): `image`, `text` or both.
    """

    verb = "embedding"

    def __init__(self, embedder: Embedder, modalities: Sequence[str]) -> None:
        self.embedder = embedder
        self.reads = tuple(modalities)
        self.columns = [f"{name}{EMBEDDING_SUFFIX}" for name in modalities]
        self.collator = EmbeddingCollator(embedder.inputs, modalities)

    def make(self, batch: Batch) -> pa.Table:
        """One row for each row of the batch: a list of fixed size, or null where there is nothing to embed."""
        columns: list[pa.Array | pa.ChunkedArray] = []
        for name in self.reads:
            counts = batch.counts[name]
            if name not in batch.encodings:
                columns.append(pa.nulls(len(counts)))
                continue
            embeds = _mean_directions(self.embedder.embed(name, batch.encodings[name]), counts).numpy()
            lists = pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(embeds)), embeds.shape[1])
            columns.append(place_rows(pa.table({name: lists}), counts).column(0))
        return pa.table(columns, names=self.columns)


def _mean_directions(embeds: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Of N embeddings, `counts` of them a row, one for each row that has some."""
    if max(counts) <= 1:
        return embeds
    groups = embeds.split([count for count in counts if count])
    means = [each[0] if len(each) == 1 else torch.nn.functional.normalize(each.mean(0), dim=0) for each in groups]
    return torch.stack(means)


def embed_table(
    model_dir: str | Path,
    input_path: str | Path,
    output_path: str | Path,
    settings: JobSettings | None = None,
    *,
    modalities: Sequence[str] = (),
    dimensions: int | None = None,
) -> JobSummary:
    """Write a table's rows with their embeddings, `image_embedding` and `text_embedding`, of length 1.

    Any number of processes may be started with the same arguments: they share the work. A row whose image or text
    cannot be embedded keeps its place, with null and the reason in `error`. The captions of a row have one embedding:
    the mean of theirs, of length 1 again. Killed at any moment and started again, the work goes on; started again when
    it is done, nothing happens. Work in progress lies in `OUTPUT.partial/`.

    Args:
        model_dir (`str` or `Path`): Folder of a dual encoder: a run, a release, or one that transformers saved.
        input_path (`str` or `Path`): CSV, TSV, JSONL or parquet file, or a folder of images.
        output_path (`str` or `Path`): `.parquet`.
        settings ([`JobSettings`], *optional*): Columns, batch size, device and the like.
        modalities (`Sequence[str]`): `image`, `text` or both; empty: what the input has.
        dimensions (`int`, *optional*): Keep the first so many numbers of each embedding, of length 1 again; for models
            trained with `contrastive.matryoshka`.

    Raises:
        InputError: The model, input or a column is absent, the output exists and was made from other inputs, or the
            model was not trained for fewer `dimensions`.
    """
    settings, output = settings or JobSettings(), Path(output_path)
    check_output(output, (".parquet",))
    if not settings.overwrite:
        refuse_existing(output)
    device = settings.choose_device()
    embedder = load_embedder(model_dir, device=device, dimensions=dimensions)
    rows, chosen = _read(input_path, model_dir, embedder, settings, modalities)
    digest = model_hash(Path(model_dir))
    source = {
        "model": str(Path(model_dir).resolve()),
        "model hash": digest,
        "images": str(Path(rows.folder.path).resolve()),
        "image column": rows.image_column,
        "text column": rows.text_columns[0] if rows.text_columns else None,
        "dimensions": dimensions,
    }
    identity = {**settings.facts(rows, device), "model": digest, "modalities": ", ".join(chosen)}
    if dimensions is not None:
        identity["dimensions"] = str(dimensions)
    metadata = {SOURCE_KEY: json.dumps(source)}
    model = RowEmbedder(embedder, chosen)
    return TableJob(model, rows, output, identity=identity, settings=settings, metadata=metadata).run()


def _read(
    input_path: str | Path,
    model_dir: str | Path,
    embedder: Embedder,
    settings: JobSettings,
    modalities: Sequence[str],
) -> tuple[TableRows, list[str]]:
    unknown = [name for name in modalities if name not in embedder.modalities]
    if unknown:
        raise InputError(f"modalities: the model does not embed {unknown[0]}, but {' and '.join(embedder.modalities)}")
    reads = {
        name: name in modalities if modalities else (None if name in embedder.modalities else False)
        for name in (IMAGE, TEXT)
    }
    rows = settings.read(input_path, model_dir, reads=reads, captions=True)
    found = {IMAGE: rows.image_column is not None, TEXT: bool(rows.text_columns)}
    return rows, [name for name, is_there in found.items() if is_there]
