"""`mmhf embed --text`: any text encoder, its pooled output in a file that says what made it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from programs import Program
from transformers import AutoModel, AutoTokenizer

from mmhf.data.text_embeddings import TextEmbeddingTable, text_hashes
from mmhf.errors import InputError
from mmhf.inference import JobSettings, text_embedders
from mmhf.inference.text_embedders import (
    KNOWN_ENCODERS,
    KnownEncoder,
    TextEncoding,
    embed_texts,
    load_text_embedder,
    rows_of_texts,
)
from mmhf.models.encoders import pool_text
from tests.inference.conftest import write_csv

TEXTS = ["grinning face", "a dog", "", "red heart with an arrow", "grinning face", "cat"]
SMALL = JobSettings(batch_size=2, shard_rows=2, progress=False)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "texts.csv", [{"id": f"r{n}", "text": text} for n, text in enumerate(TEXTS)])


def expected(folder: Path, texts: list[str], pooling: str, *, prefix: str = "", max_length: int = 64) -> np.ndarray:
    """One by one, without padding."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        tokens = tokenizer(prefix + text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state
        rows.append(pool_text(hidden, tokens["attention_mask"], pooling)[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize(
    ("pooling", "prefix", "max_length"),
    [("mean", "", 64), ("cls", "", 64), ("last_token", "face of: ", 64), ("mean", "a dog ", 4)],
)
def test_embeddings_are_the_encoder_s_own(
    text_encoder_dir: Path, table: Path, tmp_path: Path, pooling: str, prefix: str, max_length: int
) -> None:
    encoding = TextEncoding(pooling, prefix, max_length)
    summary = embed_texts(str(text_encoder_dir), table, tmp_path / "t.parquet", encoding=encoding, settings=SMALL)
    assert (summary.rows, summary.embedded, summary.errors) == (6, {"text": 5}, {"the text is empty": 1})
    opened = TextEmbeddingTable.open(tmp_path / "t.parquet")
    known = [text for text in TEXTS if text]
    found = opened.embeddings[opened.positions(known)]
    wanted = expected(text_encoder_dir, known, pooling, prefix=prefix, max_length=max_length)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    facts = opened.encoder
    assert (facts["pooling"], facts["prefix"], facts["max_length"], facts["width"]) == (
        pooling,
        prefix,
        max_length,
        32,
    )
    assert facts["backbone"] == facts["source"] == str(text_encoder_dir) and len(facts["weights"]) == 32


def test_rows_keep_their_columns_and_are_keyed_by_the_text(
    text_encoder_dir: Path, table: Path, tmp_path: Path
) -> None:
    embed_texts(str(text_encoder_dir), table, tmp_path / "t.parquet", settings=SMALL)
    written = pq.read_table(tmp_path / "t.parquet").to_pydict()
    assert list(written) == ["id", "text", "text_hash", "text_embedding", "error"]
    assert written["id"] == [f"r{n}" for n in range(6)] and written["text_hash"] == text_hashes(TEXTS)
    assert written["text_hash"][0] == written["text_hash"][4] != written["text_hash"][1]
    assert written["text_embedding"][2] is None and written["error"][2] == "the text is empty"


def test_a_table_that_is_embedded_again_has_one_hash(text_encoder_dir: Path, table: Path, tmp_path: Path) -> None:
    embed_texts(str(text_encoder_dir), table, tmp_path / "t.parquet", settings=SMALL)
    embed_texts(
        str(text_encoder_dir),
        tmp_path / "t.parquet",
        tmp_path / "u.parquet",
        encoding=TextEncoding("cls"),
        settings=SMALL,
    )
    assert pq.read_schema(tmp_path / "u.parquet").names == ["id", "text", "text_hash", "text_embedding", "error"]


def test_work_that_was_killed_is_gone_on_with(
    text_encoder_dir: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, output = str(text_encoder_dir), tmp_path / "t.parquet"
    embed_texts(name, table, tmp_path / "whole.parquet", settings=SMALL)
    embed = text_embedders.TextEncoderEmbedder.embed
    batches = []

    def stop_at_the_third(self: object, modality: str, encoding: dict[str, torch.Tensor]) -> torch.Tensor:
        batches.append(encoding)
        if len(batches) == 4:  # the first one finds the width
            raise KeyboardInterrupt
        return embed(self, modality, encoding)

    monkeypatch.setattr(text_embedders.TextEncoderEmbedder, "embed", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        embed_texts(name, table, output, settings=SMALL)
    assert not output.exists()
    with pytest.raises(InputError, match="t.parquet"):
        embed_texts(name, table, output, encoding=TextEncoding("cls"), settings=SMALL)
    summary = embed_texts(name, table, output, settings=SMALL)
    assert summary.rows_here < 6 and pq.read_table(output).equals(pq.read_table(tmp_path / "whole.parquet"))
    assert embed_texts(name, table, output, settings=SMALL).rows_here == 0


def test_another_encoding_does_not_replace_a_table_unasked(
    text_encoder_dir: Path, table: Path, tmp_path: Path
) -> None:
    name, output = str(text_encoder_dir), tmp_path / "t.parquet"
    embed_texts(name, table, output, settings=SMALL)
    with pytest.raises(InputError, match="exists and was made from other inputs"):
        embed_texts(name, table, output, encoding=TextEncoding(prefix="a "), settings=SMALL)


def test_rows_read_elsewhere(text_encoder_dir: Path, tmp_path: Path) -> None:
    rows = rows_of_texts("recipe.yaml", {"id": ["a", "b", "c"], "text": ["cat", "dog", "cat"]}, limit=2)
    summary = embed_texts(str(text_encoder_dir), rows, tmp_path / "t.parquet")
    assert summary.embedded == {"text": 2} and pq.read_table(tmp_path / "t.parquet")["id"].to_pylist() == ["a", "b"]


def test_short_names(monkeypatch: pytest.MonkeyPatch, text_encoder_dir: Path) -> None:
    assert {"pubmedbert", "sapbert", "biosyn", "qwen", "minilm"} <= set(KNOWN_ENCODERS)
    monkeypatch.setitem(KNOWN_ENCODERS, "tiny", KnownEncoder(str(text_encoder_dir), "last_token"))
    assert load_text_embedder("tiny").facts.pooling == "last_token"
    assert load_text_embedder("tiny", TextEncoding("cls")).facts.pooling == "cls"
    assert load_text_embedder(str(text_encoder_dir)).facts.pooling == "mean"


def test_bad_calls(text_encoder_dir: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pooling 'avg': unknown; choose from cls, mean"):
        TextEncoding("avg")
    with pytest.raises(InputError, match="max_length=0"):
        TextEncoding(max_length=0)
    with pytest.raises(InputError, match="name it .parquet"):
        embed_texts(str(text_encoder_dir), table, tmp_path / "t.csv")
    with pytest.raises(InputError, match="did you mean pypi/all-minilm-l6-v2"):
        embed_texts("pypi/minilm", table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="text"):
        embed_texts(str(text_encoder_dir), write_csv(tmp_path / "x.csv", [{"id": "a"}]), tmp_path / "t.parquet")


@pytest.mark.slow
def test_two_processes_share_the_work_of_a_real_encoder(table: Path, tmp_path: Path) -> None:
    write_csv(table, [{"id": str(n), "text": f"{TEXTS[n % 2]} number {n}"} for n in range(1500)])
    output = tmp_path / "t.parquet"
    running = [Program("embed", "minilm", "--text", "--input", table, "--output", output) for _ in range(2)]
    codes = [program.wait() for program in running]
    shares = [program.output for program in running]
    assert codes == [0, 0], shares
    here = [int(text.partition(" of them here")[0].rpartition(" ")[2]) for text in shares]
    assert sum(here) == 1500
    opened = TextEmbeddingTable.open(output)
    assert len(opened) == 1500 and opened.encoder["source"] == "pypi/all-minilm-l6-v2"
    facts = json.loads(pq.read_schema(output).metadata[b"mmhf.text_encoder"])
    assert (facts["pooling"], facts["max_length"], facts["width"]) == ("mean", 512, 384)
