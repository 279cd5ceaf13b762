"""Predict a whole table, in shards, so that a killed run goes on where it was."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset
from transformers import BatchFeature, PreTrainedModel

from mmhf.data.images import BadImageError, decode_image
from mmhf.data.text_embeddings import TextEmbeddingTable, TextTableProcessor
from mmhf.errors import InputError
from mmhf.inference.captioning import CaptionPredictor
from mmhf.inference.hashing import files_hash, model_hash
from mmhf.inference.inputs import PredictionRows, read_rows
from mmhf.inference.loading import choose_device, load_predictable, takes_text
from mmhf.inference.outputs import check_output, join_columns, write_table
from mmhf.inference.probabilities import class_names, class_probabilities
from mmhf.inference.shards import ShardFolder
from mmhf.models.captioner import PrefixCaptionerForConditionalGeneration
from mmhf.models.fusion import FusionForImageTextClassification
from mmhf.models.fusion.building import check_same_table
from mmhf.models.text_tables import TableEncoder

logger = logging.getLogger(__name__)

EMPTY_TEXT = "the text is empty; predicted from the image alone"
FROM_TEXT = "predicted from the text alone"


@dataclass(frozen=True)
class PredictionSettings:
    """How a table is predicted.

    Args:
        columns (`Mapping[str, str]`): Column names of `image` and, where the model takes one, `text` in the table; an
            image may be a template such as `{id}.jpg`. What is absent is taken from the model's recipe, or is `image`
            and `text`.
        image_root (`str` or `Path`, *optional*): Folder that image paths are relative to and may not leave; absent:
            the table's own.
        limit (`int`, *optional*): Predict the first rows only.
        threshold (`float`, *optional*): Two classes only: the second label is predicted from this probability on;
            absent: the more probable label.
        generation (`Mapping[str, Any]`): Captioners only: what differs from the model's own way, such as `num_beams`.
        text_embeddings (`str` or `Path`, *optional*): Only models that were trained on a table of text embeddings: one
            with these rows' texts; absent: the encoder that made the model's reads them.
        batch_size (`int`, defaults to 32): Rows per forward pass.
        workers (`int`, defaults to 0): Processes that decode images.
        device (`str`, *optional*): Absent: the accelerator, or the CPU.
        overwrite (`bool`, defaults to `False`): Replace an existing output, and drop unfinished work on other inputs.
        shard_rows (`int`, defaults to 1024): Rows after which work is saved.
        progress (`bool`, defaults to `True`): Show a progress bar.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    image_root: str | Path | None = None
    limit: int | None = None
    threshold: float | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    text_embeddings: str | Path | None = None
    batch_size: int = 32
    workers: int = 0
    device: str | None = None
    overwrite: bool = False
    shard_rows: int = 1024
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("batch_size", 1), ("workers", 0), ("shard_rows", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}={value}: expected {least} or more")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"threshold={self.threshold}: expected a probability between 0 and 1")


@dataclass(frozen=True)
class PredictionSummary:
    """What came of it.

    Args:
        output_path (`Path`): The file.
        rows (`int`): Its rows, those of the input.
        unpredicted (`int`): Rows without a prediction.
        labels (`dict[str, int]`): Rows by predicted label; empty for captions.
        errors (`dict[str, int]`): Rows by the reason in their `error` column.
        resumed_rows (`int`): Rows that an earlier, interrupted run had done.
        seconds (`float`): Duration of this run.
    """

    output_path: Path
    rows: int
    unpredicted: int
    labels: dict[str, int]
    errors: dict[str, int]
    resumed_rows: int
    seconds: float


class ClassificationPredictor:
    """Turns encoded batches into the columns `label`, `probability_<label>` and `confidence`.

    A model with an abstention threshold gives the column `abstained`, too: whether the confidence is below it.

    Args:
        model (`PreTrainedModel`): A classifier in eval mode, on its device.
        threshold (`float`, *optional*): See [`PredictionSettings`].
    """

    def __init__(self, model: PreTrainedModel, *, threshold: float | None = None) -> None:
        self.model = model
        self.threshold = threshold
        self.label_names = class_names(model)
        if threshold is not None and len(self.label_names) != 2:
            raise InputError(f"threshold: the model has {len(self.label_names)} labels, a threshold needs two")

    @property
    def schema(self) -> pa.Schema:
        probabilities = [(f"probability_{name}", pa.float64()) for name in self.label_names]
        abstained = [] if self.model.config.abstain_below is None else [("abstained", pa.bool_())]
        return pa.schema([("label", pa.string()), *probabilities, ("confidence", pa.float64()), *abstained])

    @torch.inference_mode()
    def predict(self, encoding: Mapping[str, torch.Tensor]) -> pa.Table:
        """One row of `schema` for each row of the batch; `confidence` is the probability of the predicted label."""
        inputs = {name: tensor.to(self.model.device) for name, tensor in encoding.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        probabilities = class_probabilities(self.model(**inputs).logits)
        if self.threshold is None:
            chosen = probabilities.argmax(dim=-1)
        else:
            chosen = (probabilities[:, 1] >= self.threshold).long()
        confidence = probabilities.gather(1, chosen[:, None])[:, 0]
        labels = [self.label_names[index] for index in chosen.tolist()]
        columns = [labels, *probabilities.T.tolist(), confidence.tolist()]
        if self.model.config.abstain_below is not None:
            columns.append((confidence < self.model.config.abstain_below).tolist())
        return pa.table([pa.array(column) for column in columns], schema=self.schema)


def predict_table(
    model_dir: str | Path,
    input_path: str | Path,
    output_path: str | Path,
    settings: PredictionSettings | None = None,
) -> PredictionSummary:
    """Predict every row of a table or folder and write them, in order, with the input's own columns.

    A row that cannot be predicted keeps its place, with the reason in `error`; an empty text is predicted and noted
    there, and so is a row without a usable image if the model was trained to go by the text alone. Killed at any
    moment and started again with the same arguments, it writes the file that it would have written. Work in progress
    lies in `OUTPUT.partial/`; the output appears when it is complete.

    Args:
        model_dir (`str` or `Path`): Run or release folder.
        input_path (`str` or `Path`): CSV, TSV, JSONL or parquet file, or a folder of images: with a metadata file,
            or, for a model that takes no text, without one.
        output_path (`str` or `Path`): `.csv` or `.parquet`.
        settings ([`PredictionSettings`], *optional*): Columns, limit, threshold, batch size, device and the like.

    Raises:
        InputError: The model, input or a column is absent, the output exists, or it was begun from other inputs.
    """
    settings, output, started = settings or PredictionSettings(), Path(output_path), time.monotonic()
    check_output(output, overwrite=settings.overwrite)
    device = choose_device(settings.device)
    model, processor = load_predictable(model_dir, device=device)
    predictor = _predictor_of(model, processor, settings)
    rows = read_rows(
        input_path,
        model_dir=model_dir,
        columns=settings.columns,
        image_root=settings.image_root,
        limit=settings.limit,
        with_text=takes_text(model),
    )
    if settings.text_embeddings is not None:
        processor = _with_table(model, processor, rows, Path(settings.text_embeddings))
    shards = ShardFolder(output, _identity(rows, Path(model_dir), device, settings))
    with shards.opened(discard_other=settings.overwrite):
        plan = _plan(len(rows), settings, shards.finished())
        todo = sum(len(indices) for _, indices in plan)
        if todo < len(rows):
            logger.info("%s: going on after %d of %d rows", output, len(rows) - todo, len(rows))
        _predict_shards(plan, rows, processor, predictor, shards, settings)
        predictions = shards.read(range(-(-len(rows) // settings.shard_rows)))
        write_table(join_columns(rows.table.columns, predictions), output, shards.path / output.name)
        shards.remove()
    return _summary(output, predictions, resumed_rows=len(rows) - todo, seconds=time.monotonic() - started)


def _with_table(model: PreTrainedModel, processor: Any, rows: PredictionRows, path: Path) -> TextTableProcessor:
    """The processor with a table of text embeddings that holds every text of these rows."""
    if not isinstance(model, FusionForImageTextClassification):
        raise InputError("text_embeddings: only a model of images and texts reads a table of them")
    table = TextEmbeddingTable.open(path)
    config: Any = model.config
    check_same_table(config, TableEncoder.from_dict(table.encoder), "the model")
    texts = rows.texts or []
    may_lack = "text" in config.missing_modalities
    absent = [
        number for number, place in enumerate(table.positions(texts)) if place < 0 and (texts[number] or not may_lack)
    ]
    if absent:
        raise InputError(
            f"{path}: has no embedding for {len(absent)} of {len(rows)} texts, such as that of row "
            f"{rows.table.rows[absent[0]]}; embed this table with mmhf embed --text, or go without text_embeddings"
        )
    return TextTableProcessor(processor, table)


Predictor = ClassificationPredictor | CaptionPredictor


def _predictor_of(model: PreTrainedModel, processor: Any, settings: PredictionSettings) -> Predictor:
    if isinstance(model, PrefixCaptionerForConditionalGeneration):
        if settings.threshold is not None:
            raise InputError("threshold: the model writes captions, and no labels")
        return CaptionPredictor(model, processor, settings.generation)
    if settings.generation:
        raise InputError("generation: the model predicts labels, and writes no captions")
    return ClassificationPredictor(model, threshold=settings.threshold)


class _Examples(Dataset):
    """Decoded rows; a row that cannot be decoded comes with the reason instead."""

    def __init__(self, rows: PredictionRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        text = None if self.rows.texts is None else self.rows.texts[index]
        try:
            image = decode_image(self.rows.image(index))
        except BadImageError as error:
            return {"image": None, "text": text, "error": str(error)}
        return {"image": image, "text": text, "error": EMPTY_TEXT if text == "" else None}


@dataclass(frozen=True)
class _Batch:
    encoding: BatchFeature | None
    predicted: list[bool]
    errors: list[str | None]


def _missing_modalities(predictor: Predictor) -> list[str]:
    """`image`, `text`: those that a row may lack."""
    takes_both = isinstance(predictor, ClassificationPredictor) and takes_text(predictor.model)
    return list(predictor.model.config.missing_modalities) if takes_both else []


class _Collator:
    """Encodes what can be predicted; `missing` are the modalities that the model can do without."""

    def __init__(
        self, processor: Callable[..., BatchFeature], *, with_text: bool, missing: Collection[str] = ()
    ) -> None:
        self.processor = processor
        self.with_text = with_text
        self.missing = missing

    def __call__(self, examples: Sequence[dict[str, Any]]) -> _Batch:
        predicted = [self._is_predictable(example) for example in examples]
        good = [example for example, use in zip(examples, predicted, strict=True) if use]
        errors = [
            f"{example['error']}; {FROM_TEXT}" if use and example["image"] is None else example["error"]
            for example, use in zip(examples, predicted, strict=True)
        ]
        return _Batch(self._encode(good) if good else None, predicted=predicted, errors=errors)

    def _is_predictable(self, example: Mapping[str, Any]) -> bool:
        return example["image"] is not None or ("image" in self.missing and bool(example["text"]))

    def _encode(self, examples: Sequence[dict[str, Any]]) -> BatchFeature:
        images = [example["image"] for example in examples]
        if not self.with_text:
            return self.processor(images=images, return_tensors="pt")
        texts = [example["text"] for example in examples]
        if not self.missing:
            return self.processor(images=images, text=texts)
        if "text" in self.missing:
            texts = [text or None for text in texts]
        return self.processor(images=images, text=texts, masks=True)


def _plan(num_rows: int, settings: PredictionSettings, finished: set[int]) -> list[tuple[int, list[int]]]:
    """(shard number, row indices) of each batch to do. Batches do not depend on what is finished already."""
    plan = []
    for number, start in enumerate(range(0, num_rows, settings.shard_rows)):
        if number in finished:
            continue
        end = min(start + settings.shard_rows, num_rows)
        for first in range(start, end, settings.batch_size):
            plan.append((number, list(range(first, min(first + settings.batch_size, end)))))
    return plan


def _predict_shards(
    plan: Sequence[tuple[int, list[int]]],
    rows: PredictionRows,
    processor: Callable[..., BatchFeature],
    predictor: Predictor,
    shards: ShardFolder,
    settings: PredictionSettings,
) -> None:
    loader = DataLoader(
        _Examples(rows),
        batch_sampler=[indices for _, indices in plan],
        collate_fn=_Collator(processor, with_text=rows.texts is not None, missing=_missing_modalities(predictor)),
        num_workers=settings.workers,
    )
    pending: list[pa.Table] = []
    for position, batch in enumerate(_with_progress(loader, plan, len(rows), enabled=settings.progress)):
        pending.append(_predict_batch(batch, predictor))
        number = plan[position][0]
        if position + 1 == len(plan) or plan[position + 1][0] != number:
            shards.write(number, pa.concat_tables(pending))
            pending = []


def _predict_batch(batch: _Batch, predictor: Predictor) -> pa.Table:
    predicted = predictor.schema.empty_table() if batch.encoding is None else predictor.predict(batch.encoding)
    positions = iter(range(len(predicted)))
    places = pa.array([next(positions) if good else None for good in batch.predicted], pa.int64())
    return predicted.take(places).append_column("error", pa.array(batch.errors, pa.string()))


def _with_progress(
    loader: DataLoader, plan: Sequence[tuple[int, list[int]]], num_rows: int, *, enabled: bool
) -> Iterator[_Batch]:
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    todo = sum(len(indices) for _, indices in plan)
    with Progress(*columns, console=Console(stderr=True), disable=not enabled) as progress:
        bar = progress.add_task("rows", total=num_rows, completed=num_rows - todo)
        for batch, (_, indices) in zip(loader, plan, strict=True):
            yield batch
            progress.advance(bar, len(indices))


def _identity(
    rows: PredictionRows, model_dir: Path, device: torch.device, settings: PredictionSettings
) -> dict[str, str]:
    return {
        "input": rows.table_hash,
        "images": rows.images_hash(),
        "columns": f"{rows.image_column}, {rows.text_column}",
        "model": model_hash(model_dir),
        "device": device.type,
        "limit": str(settings.limit),
        "threshold": str(settings.threshold),
        "generation": str(dict(settings.generation)),
        "text embeddings": "" if settings.text_embeddings is None else files_hash([Path(settings.text_embeddings)]),
        "batch size": str(settings.batch_size),
        "shard size": str(settings.shard_rows),
    }


def _summary(output: Path, predictions: pa.Table, *, resumed_rows: int, seconds: float) -> PredictionSummary:
    predicted, errors = predictions.column(0), predictions.column("error")
    labels = predicted.drop_null().to_pylist() if predictions.column_names[0] == "label" else []
    return PredictionSummary(
        output_path=output,
        rows=len(predictions),
        unpredicted=pc.sum(pc.is_null(predicted)).as_py() or 0,
        labels=dict(Counter(labels)),
        errors=dict(Counter(errors.drop_null().to_pylist())),
        resumed_rows=resumed_rows,
        seconds=seconds,
    )
