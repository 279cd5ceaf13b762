"""Embed the texts of a table once, with any text encoder, for models that are trained on the embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmhf.data.images import DataFolder
from mmhf.data.readers import TableFile
from mmhf.data.text_embeddings import EMBEDDING_COLUMN, ENCODER_KEY, HASH_COLUMN, text_hashes
from mmhf.errors import InputError
from mmhf.inference.embedders import EmbedderInputs, RowEmbedder
from mmhf.inference.inputs import IMAGE, TEXT, TableRows
from mmhf.inference.jobs import JobSettings, JobSummary
from mmhf.inference.loading import choose_device
from mmhf.inference.outputs import check_output, refuse_existing
from mmhf.inference.table_job import TableJob
from mmhf.models.backbones import load_encoder, load_encoder_config, load_tokenizer, reference_of
from mmhf.models.encoders import TEXT_POOLINGS
from mmhf.models.text_tables import TableEncoder, embed_tokens, weights_digest


@dataclass(frozen=True)
class KnownEncoder:
    """A text encoder with a short name.

    Args:
        backbone (`str`): As a recipe names it.
        pooling (`str`): The one that it was trained with.
    """

    backbone: str
    pooling: str


KNOWN_ENCODERS = {
    "pubmedbert": KnownEncoder("microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", "cls"),
    "sapbert": KnownEncoder("cambridgeltl/SapBERT-from-PubMedBERT-fulltext", "cls"),
    "biosyn": KnownEncoder("dmis-lab/biosyn-sapbert-ncbi-disease", "cls"),
    "qwen": KnownEncoder("Qwen/Qwen3-Embedding-0.6B", "last_token"),
    "minilm": KnownEncoder("pypi/all-minilm-l6-v2", "mean"),
}
"""Short name → encoder."""
_USUAL_POOLING = "mean"
_DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True)
class TextEncoding:
    """How texts become embeddings.

    Args:
        pooling (`str`, *optional*): `mean`, `cls`, `last_token`, `max` or `pooler`; absent: what the encoder with the
            short name was trained with, and `mean` for others.
        prefix (`str`): Put before each text: `"Instruct: Describe the disease\\nQuery: "`.
        max_length (`int`, defaults to 512): Tokens after which a text is cut, prefix included; never more than the
            tokenizer allows.
    """

    pooling: str | None = None
    prefix: str = ""
    max_length: int = _DEFAULT_MAX_LENGTH

    def __post_init__(self) -> None:
        if self.pooling is not None and self.pooling not in TEXT_POOLINGS:
            raise InputError(f"pooling {self.pooling!r}: unknown; choose from {', '.join(TEXT_POOLINGS)}")
        if self.max_length < 1:
            raise InputError(f"max_length={self.max_length}: expected 1 or more")


class TextInputs(EmbedderInputs):
    """Makes tokens of texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prefix: str, max_length: int) -> None:
        super().__init__(tokenizer)
        self.prefix = prefix
        self.max_length = max_length

    def encode(self, modality: str, values: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Tokens (N, T) of N texts, cut and padded."""
        texts = [self.prefix + text for text in values]
        encoded = self.processor(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


class TextEncoderEmbedder:
    """A text encoder with its tokenizer.

    Args:
        encoder (`PreTrainedModel`): In eval mode, on its device.
        inputs ([`TextInputs`]): Its tokenizer.
        facts ([`TableEncoder`]): What a table says of it.
    """

    modalities = (TEXT,)

    def __init__(self, encoder: PreTrainedModel, inputs: TextInputs, facts: TableEncoder) -> None:
        self.encoder = encoder
        self.inputs = inputs
        self.facts = facts

    def embed(self, modality: str, encoding: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Pooled output (N, width) as a fusion model would have it, in float32 on the CPU; not of length 1."""
        tokens, mask = (encoding[name].to(self.encoder.device) for name in ("input_ids", "attention_mask"))
        return embed_tokens(self.encoder, tokens, mask, self.facts.pooling).float().cpu()


def load_text_embedder(
    name: str, encoding: TextEncoding | None = None, *, device: torch.device | None = None
) -> TextEncoderEmbedder:
    """Load a text encoder.

    Args:
        name (`str`): A short name of `KNOWN_ENCODERS`, a Hub repository (`@revision` may follow), a local folder, or
            `pypi/NAME`.
        encoding ([`TextEncoding`], *optional*): Pooling, prefix, length.
        device (`torch.device`, *optional*): Absent: the accelerator, or the CPU.

    Raises:
        InputError: There is no such encoder, or it has no such pooling.
    """
    encoding = encoding or TextEncoding()
    known = KNOWN_ENCODERS.get(name, KnownEncoder(name, _USUAL_POOLING))
    pooling = encoding.pooling or known.pooling
    # The commit is asked for first, so that config, weights and tokenizer are of the same one.
    config = load_encoder_config(known.backbone, modality="text")
    source = reference_of(known.backbone) or known.backbone
    tokenizer = load_tokenizer(source)
    encoder = load_encoder(source, config, pretrained=True).eval().requires_grad_(False)
    facts = TableEncoder(
        backbone=known.backbone,
        source=source,
        weights=weights_digest(encoder),
        pooling=pooling,
        prefix=encoding.prefix,
        max_length=min(encoding.max_length, tokenizer.model_max_length),
        width=0,
    )
    embedder = TextEncoderEmbedder(
        encoder.to(device or choose_device()), TextInputs(tokenizer, facts.prefix, facts.max_length), facts
    )
    try:
        width = embedder.embed(TEXT, embedder.inputs.encode(TEXT, ["a"])).shape[1]
    except ValueError as error:
        raise InputError(f"{known.backbone}: pooling {pooling}: {error}") from error
    embedder.facts = replace(facts, width=width)
    return embedder


def embed_texts(
    name: str,
    input_path: str | Path | TableRows,
    output_path: str | Path,
    settings: JobSettings | None = None,
    *,
    encoding: TextEncoding | None = None,
) -> JobSummary:
    """Write a table's rows with `text_hash` and `text_embedding`, the encoder's pooled output.

    The file says what made it: encoder, commit, weights, pooling, prefix, length. As with `embed_table`, any number of
    processes share the work, killed work is gone on with, and an empty text has null and the reason in `error`.

    Args:
        name (`str`): See `load_text_embedder`.
        input_path (`str`, `Path` or [`TableRows`]): A CSV, TSV, JSONL or parquet file with a column of texts, or
            rows that have been read.
        output_path (`str` or `Path`): `.parquet`.
        settings ([`JobSettings`], *optional*): Column, limit, batch size, device and the like.
        encoding ([`TextEncoding`], *optional*): Pooling, prefix, length.

    Raises:
        InputError: The encoder, input or column is absent, or the output exists and was made from other inputs.
    """
    settings, output = settings or JobSettings(), Path(output_path)
    check_output(output, (".parquet",))
    if not settings.overwrite:
        refuse_existing(output)
    rows = input_path
    if not isinstance(rows, TableRows):
        rows = settings.read(rows, None, reads={IMAGE: False})
    device = settings.choose_device()
    embedder = load_text_embedder(name, encoding, device=device)
    facts = embedder.facts.to_dict()
    identity = {**settings.facts(rows, device), **{f"encoder {key}": str(value) for key, value in facts.items()}}
    metadata = {ENCODER_KEY: json.dumps(facts)}
    made = (HASH_COLUMN, EMBEDDING_COLUMN, "error")  # columns of an earlier table
    columns = {name: values for name, values in rows.table.columns.items() if name not in made}
    columns[HASH_COLUMN] = text_hashes(rows.first_texts())
    rows = replace(rows, table=replace(rows.table, columns=columns))
    model = RowEmbedder(embedder, [TEXT])
    return TableJob(model, rows, output, identity=identity, settings=settings, metadata=metadata).run()


def rows_of_texts(origin: str, columns: Mapping[str, Sequence[Any]], *, limit: int | None = None) -> TableRows:
    """Rows that have been read elsewhere, such as those of a recipe.

    Args:
        origin (`str`): Where they come from, for messages.
        columns (`Mapping[str, Sequence]`): Among them `text`.
        limit (`int`, *optional*): The first rows only.
    """
    chosen = {name: list(values)[:limit] for name, values in columns.items()}
    texts = pa.array([[text] if text else [] for text in chosen["text"]], pa.list_(pa.string()))
    digest = hashlib.sha256(json.dumps(chosen, default=str).encode()).hexdigest()
    return TableRows(TableFile.of(origin, chosen), texts, None, ("text",), DataFolder("."), digest)
