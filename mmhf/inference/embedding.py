"""Embed the images and texts of a table or folder, with as many processes as there are."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from torch.utils.data import DataLoader

from mmhf.errors import InputError
from mmhf.inference.embedders import IMAGE, TEXT, load_embedder
from mmhf.inference.embedding_batches import (
    Embedder,
    EmbeddingCollator,
    EmbeddingExamples,
    EncodedBatch,
    embed_batch,
)
from mmhf.inference.hashing import model_hash
from mmhf.inference.inputs import PredictionRows, read_rows
from mmhf.inference.loading import choose_device
from mmhf.inference.outputs import join_columns
from mmhf.inference.shared_shards import SharedShardFolder

logger = logging.getLogger(__name__)

IDENTITY_KEY = b"mmhf.embedding"
"""Key of the parquet file's metadata that says what it was made from."""
SOURCE_KEY = b"mmhf.source"
"""Key of what a search needs to know: the model's folder, the images' folder, and the columns."""
_WAIT_FOR_OTHERS = 0.5


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a table is embedded.

    Args:
        modalities (`Sequence[str]`): `image`, `text` or both; empty: what the input has.
        columns (`Mapping[str, str]`): Names of the columns of `image` and `text`; an image may be a template such as
            `{id}.jpg`. What is absent is taken from the model's recipe, or is `image` and `text`.
        image_root (`str` or `Path`, *optional*): Folder that image paths are relative to and may not leave; absent:
            the table's own.
        limit (`int`, *optional*): Embed the first rows only.
        batch_size (`int`, defaults to 32): Rows per forward pass.
        workers (`int`, defaults to 0): Processes that decode images.
        device (`str`, *optional*): Absent: the accelerator, or the CPU.
        overwrite (`bool`, defaults to `False`): Replace an output that was made from other inputs.
        shard_rows (`int`, defaults to 1024): Rows after which work is saved, and that one process takes at a time.
    """

    modalities: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    image_root: str | Path | None = None
    limit: int | None = None
    batch_size: int = 32
    workers: int = 0
    device: str | None = None
    overwrite: bool = False
    shard_rows: int = 1024

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("batch_size", 1), ("workers", 0), ("shard_rows", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}={value}: expected {least} or more")


@dataclass(frozen=True)
class EmbeddingSummary:
    """What came of it.

    Args:
        output_path (`Path`): The file.
        rows (`int`): Its rows, those of the input.
        embedded (`dict[str, int]`): Rows with an embedding, by modality.
        errors (`dict[str, int]`): Rows by the reason in their `error` column.
        rows_here (`int`): Rows that this process did, and no other or earlier one.
        seconds (`float`): Duration of this process's part.
    """

    output_path: Path
    rows: int
    embedded: dict[str, int]
    errors: dict[str, int]
    rows_here: int
    seconds: float


def embed_table(
    model_dir: str | Path, input_path: str | Path, output_path: str | Path, settings: EmbeddingSettings | None = None
) -> EmbeddingSummary:
    """Write a table's rows with their embeddings, `image_embedding` and `text_embedding`, of length 1.

    Any number of processes may be started with the same arguments: they share the work. A row whose image or text
    cannot be embedded keeps its place, with null and the reason in `error`. Killed at any moment and started again,
    the work goes on; started again when it is done, nothing happens. Work in progress lies in `OUTPUT.partial/`.

    Args:
        model_dir (`str` or `Path`): Folder of a dual encoder: a run, a release, or one that transformers saved.
        input_path (`str` or `Path`): CSV, TSV, JSONL or parquet file, or a folder of images.
        output_path (`str` or `Path`): `.parquet`.
        settings ([`EmbeddingSettings`], *optional*): Modalities, columns, batch size, device and the like.

    Raises:
        InputError: The model, input or a column is absent, or the output exists and was made from other inputs.
    """
    settings, output = settings or EmbeddingSettings(), Path(output_path)
    check_parquet_name(output)
    device = choose_device(settings.device)
    embedder = load_embedder(model_dir, device=device)
    rows, modalities = _read(input_path, model_dir, embedder, settings)
    identity = _identity(rows, modalities, Path(model_dir), device, settings)
    source = {
        "model": str(Path(model_dir).resolve()),
        "images": str(Path(rows.folder.path).resolve()),
        "image column": rows.image_column,
        "text column": rows.text_column,
    }
    metadata = {SOURCE_KEY: json.dumps(source)}
    return embed_rows(embedder, rows, modalities, output, identity=identity, metadata=metadata, settings=settings)


def embed_rows(
    embedder: Embedder,
    rows: PredictionRows,
    modalities: Sequence[str],
    output: Path,
    *,
    identity: Mapping[str, str],
    metadata: Mapping[bytes, str],
    settings: EmbeddingSettings,
) -> EmbeddingSummary:
    """Write rows with their embeddings; see `embed_table`.

    Args:
        embedder ([`Embedder`]): What embeds them.
        rows ([`PredictionRows`]): What is embedded, with the columns that are written beside the embeddings.
        modalities (`Sequence[str]`): `image`, `text` or both.
        output (`Path`): `.parquet`.
        identity (`Mapping[str, str]`): What decides the result; work on another one is not gone on with.
        metadata (`Mapping[bytes, str]`): What the file is to say of itself beside it.
        settings ([`EmbeddingSettings`]): Batch size and the like.

    Raises:
        InputError: The output exists and was made from other inputs.
    """
    started = time.monotonic()
    check_parquet_name(output)
    if output.exists() and not settings.overwrite and written_identity(output) != identity:
        raise InputError(f"{output}: exists and was made from other inputs; choose another name, or overwrite it")
    shards = SharedShardFolder(output, identity)
    rows_here = 0
    if _is_complete(output, identity):
        shards.tidy()
    else:
        with shards.joined(discard_other=settings.overwrite):
            rows_here = _fill(shards, rows, modalities, embedder, settings)
            with shards.assembling():
                if not _is_complete(output, identity):
                    written = {IDENTITY_KEY: json.dumps(identity), **metadata}
                    _assemble(shards, rows, settings.shard_rows, written)
    return _summary(output, modalities, rows_here, time.monotonic() - started)


def written_identity(path: Path) -> dict[str, str] | None:
    """What a parquet file of embeddings was made from; None for another file."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid:
        return None
    return json.loads(metadata[IDENTITY_KEY]) if IDENTITY_KEY in metadata else None


def _is_complete(output: Path, identity: Mapping[str, str]) -> bool:
    return output.exists() and written_identity(output) == identity


def check_parquet_name(path: Path) -> None:
    """Refuse an output that is no `.parquet` file, before anything is loaded for it."""
    if path.suffix.lower() != ".parquet":
        raise InputError(f"{path}: embeddings are written as parquet; name it .parquet")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a .parquet file")


def _read(
    input_path: str | Path, model_dir: str | Path, embedder: Embedder, settings: EmbeddingSettings
) -> tuple[PredictionRows, list[str]]:
    unknown = [name for name in settings.modalities if name not in embedder.modalities]
    if unknown:
        raise InputError(f"modalities: the model does not embed {unknown[0]}, but {' and '.join(embedder.modalities)}")
    wanted = {
        name: name in settings.modalities if settings.modalities else (None if name in embedder.modalities else False)
        for name in (IMAGE, TEXT)
    }
    rows = read_rows(
        input_path,
        model_dir=model_dir,
        columns=settings.columns,
        image_root=settings.image_root,
        limit=settings.limit,
        with_image=wanted[IMAGE],
        with_text=wanted[TEXT],
    )
    found = {IMAGE: rows.image_column, TEXT: rows.text_column}
    return rows, [name for name, column in found.items() if column is not None]


class _ClaimedBatches:
    """Row indices of batches of the shards that this process could claim, claimed when they are needed."""

    def __init__(self, shards: SharedShardFolder, todo: Sequence[int], num_rows: int, settings: EmbeddingSettings):
        self.shards, self.todo, self.num_rows, self.settings = shards, todo, num_rows, settings
        self.claims: deque[tuple[int, FileLock, int]] = deque()
        """(shard, its lock, its batches), oldest first."""

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.todo:
            lock = self.shards.claim(number)
            if lock is None:
                continue
            start = number * self.settings.shard_rows
            indices = list(range(start, min(start + self.settings.shard_rows, self.num_rows)))
            size = self.settings.batch_size
            batches = [indices[first : first + size] for first in range(0, len(indices), size)]
            self.claims.append((number, lock, len(batches)))
            yield from batches


def _fill(
    shards: SharedShardFolder,
    rows: PredictionRows,
    modalities: Sequence[str],
    embedder: Embedder,
    settings: EmbeddingSettings,
) -> int:
    """Do shards until all are done, by whomever; gives the rows done here."""
    numbers = range(-(-len(rows) // settings.shard_rows))
    rows_here = 0
    while todo := sorted(set(numbers) - shards.finished()):
        claimed = _ClaimedBatches(shards, todo, len(rows), settings)
        loader = DataLoader(
            EmbeddingExamples(rows, modalities),
            batch_sampler=claimed,
            collate_fn=EmbeddingCollator(embedder.inputs, modalities),
            num_workers=settings.workers,
        )
        done = 0
        for number, table in _embed_shards(iter(loader), claimed, embedder, modalities):
            shards.write(number, table)
            done += len(table)
            logger.info("%s: %d of %d shards", shards.output_path, len(shards.finished()), len(numbers))
        rows_here += done
        if not done:
            time.sleep(_WAIT_FOR_OTHERS)
    return rows_here


def _embed_shards(
    batches: Iterator[EncodedBatch], claimed: _ClaimedBatches, embedder: Embedder, modalities: Sequence[str]
) -> Iterator[tuple[int, pa.Table]]:
    """Each claimed shard's table; its claim ends when the next one is asked for."""
    pending: list[pa.Table] = []
    for batch in batches:
        pending.append(embed_batch(batch, embedder, modalities))
        number, lock, size = claimed.claims[0]
        if len(pending) == size:
            yield number, pa.concat_tables(pending, promote_options="default")
            claimed.claims.popleft()
            lock.release()
            pending = []


def _assemble(shards: SharedShardFolder, rows: PredictionRows, shard_rows: int, metadata: Mapping[bytes, str]) -> None:
    """Write the output shard by shard, so that its embeddings never are in memory as a whole."""
    numbers = range(-(-len(rows) // shard_rows))
    types = _embedding_types(shards, numbers)
    blank = pa.table({name: pa.nulls(len(rows), kind) for name, kind in types.items()})
    table = join_columns(rows.table.columns, blank)
    schema = table.schema.with_metadata(dict(metadata))
    temporary = shards.path / shards.output_path.name
    with pq.ParquetWriter(temporary, schema) as writer:
        for number in numbers:
            part, made = table.slice(number * shard_rows, shard_rows), shards.read(range(number, number + 1))
            for name, kind in types.items():
                column = made.column(name)
                filled = pa.nulls(len(made), kind) if pa.types.is_null(column.type) else column
                part = part.set_column(part.schema.get_field_index(name), schema.field(name), filled)
            writer.write_table(part)
    temporary.replace(shards.output_path)


def _embedding_types(shards: SharedShardFolder, numbers: range) -> dict[str, pa.DataType]:
    """The type of each column that was made; a shard in which nothing could be embedded does not know the width."""
    types: dict[str, pa.DataType] = {}
    for number in numbers:
        for column in shards.schema(number):
            if pa.types.is_null(types.get(column.name, pa.null())):
                types[column.name] = column.type
    return {name: pa.list_(pa.float32()) if pa.types.is_null(kind) else kind for name, kind in types.items()}


def _identity(
    rows: PredictionRows,
    modalities: Sequence[str],
    model_dir: Path,
    device: torch.device,
    settings: EmbeddingSettings,
) -> dict[str, str]:
    return {
        "input": rows.table_hash,
        "images": rows.images_hash(),
        "columns": f"{rows.image_column}, {rows.text_column}",
        "model": model_hash(model_dir),
        "device": device.type,
        "limit": str(settings.limit),
        "modalities": ", ".join(modalities),
        "batch size": str(settings.batch_size),
        "shard size": str(settings.shard_rows),
    }


def _summary(output: Path, modalities: Sequence[str], rows_here: int, seconds: float) -> EmbeddingSummary:
    embedded, errors = Counter[str](), Counter[str]()
    names = {modality: f"{modality}_embedding" for modality in modalities}
    file = pq.ParquetFile(output)
    for batch in file.iter_batches(columns=[*names.values(), "error"]):
        embedded.update({modality: len(batch) - batch.column(name).null_count for modality, name in names.items()})
        errors.update(batch.column("error").drop_null().to_pylist())
    return EmbeddingSummary(output, file.metadata.num_rows, dict(embedded), dict(errors), rows_here, seconds)
