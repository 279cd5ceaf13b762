"""Tables of text embeddings: looking texts up, and saying what is wrong with a table."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.data.loading import LoadedData
from mmhf.data.table import NO_IMAGE, ROW_FEATURES
from mmhf.data.text_embeddings import (
    ENCODER_KEY,
    TextEmbeddingTable,
    TextTableProcessor,
    look_up_texts,
    read_table_encoder,
    text_hashes,
)
from mmhf.errors import InputError

WIDTH = 4


def write_table(path: Path, texts: Sequence[str | None], ids: Sequence[str] | None = None) -> Path:
    """The embedding of the n-th text is n; None has no embedding."""
    values = [None if text is None else [float(number)] * WIDTH for number, text in enumerate(texts)]
    table = pa.table(
        {
            "id": ids or [f"row{number}" for number in range(len(texts))],
            "text_hash": text_hashes(texts),
            "text_embedding": pa.array(values, pa.list_(pa.float32(), WIDTH)),
        }
    )
    facts = json.dumps({"backbone": "tiny", "width": WIDTH})
    pq.write_table(table.replace_schema_metadata({ENCODER_KEY: facts}), path, row_group_size=3)
    return path


def rows_of(texts: Sequence[str]) -> datasets.Dataset:
    columns = {"row": range(1, len(texts) + 1), "id": [f"row{number}" for number in range(len(texts))]}
    values = {**columns, "image": [NO_IMAGE] * len(texts), "text": texts, "label": [0] * len(texts)}
    return datasets.Dataset.from_dict({name: list(each) for name, each in values.items()}, features=ROW_FEATURES)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=5), max_size=12), st.lists(st.text(max_size=5), max_size=6))
def test_every_text_finds_its_own_embedding_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, known: list[str], others: list[str]
) -> None:
    table = TextEmbeddingTable.open(write_table(tmp_path_factory.mktemp("table") / "t.parquet", known))
    clean = [text.strip() for text in known]
    assert len(table) == len(set(clean))
    for text, place in zip([*known, *others], table.positions([*known, *others]), strict=True):
        assert (place >= 0) == (text.strip() in clean)
        if place >= 0:
            assert table.embeddings[place].tolist() == [float(clean.index(text.strip()))] * WIDTH


def test_batches_of_features_and_masks(tmp_path: Path) -> None:
    table = TextEmbeddingTable.open(write_table(tmp_path / "t.parquet", ["frog", "lamp", None, "frog"]))
    assert len(table) == 2 and table.encoder["width"] == WIDTH
    encoded = table.encode(["lamp", " frog "])
    assert torch.equal(encoded["text_features"], torch.tensor([[1.0] * 4, [0.0] * 4])) and "text_mask" not in encoded
    encoded = table.encode([None, "lamp"])
    assert torch.equal(encoded["text_features"], torch.tensor([[0.0] * 4, [1.0] * 4]))
    assert encoded["text_mask"].tolist() == [0, 1]
    assert table.encode(["lamp"], masks=True)["text_mask"].tolist() == [1]
    assert copy.deepcopy({"table": table})["table"] is table
    with pytest.raises(InputError, match=r"t.parquet: has no embedding of the text 'toad'; make the table anew"):
        table.encode(["lamp", "toad"])


def test_a_processor_with_a_table_tokenises_nothing(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def processor(**given: Any) -> dict[str, torch.Tensor]:
        asked.append(given)
        return {"pixel_values": torch.zeros(len(given["images"]), 3, 2, 2)}

    table = TextEmbeddingTable.open(write_table(tmp_path / "t.parquet", ["frog", "lamp"]))
    batch = TextTableProcessor(processor, table)(images=["a", "b"], text=["lamp", None], masks=True)
    assert set(batch) == {"pixel_values", "text_features", "text_mask"}
    assert asked == [{"images": ["a", "b"], "masks": True}]
    assert set(TextTableProcessor(processor, table)(text=["lamp"])) == {"text_features"}


def test_texts_that_are_not_in_the_table_are_named(tmp_path: Path) -> None:
    table = TextEmbeddingTable.open(write_table(tmp_path / "t.parquet", ["frog", "lamp", "bulb"]))
    whole = LoadedData({"train": rows_of(["frog", "bulb"])}, ["a"])
    assert look_up_texts(whole, table, may_lack=False).splits["train"]["text"][:] == ["frog", "bulb"]
    data = LoadedData({"train": rows_of(["frog", "lamps", "bulb", "tree"]), "test": rows_of(["", "lamp"])}, ["a"])
    with pytest.raises(InputError) as raised:
        look_up_texts(data, table, may_lack=False)
    message = str(raised.value)
    assert "\n" not in message and message.startswith("model.text.embeddings: 2 of 4 texts of train are not in")
    assert "row 2 (id row1): its text is another than that with its id" in message
    assert "row 4 (id row3): its text has no embedding" in message and "data.on_empty_text: mask" in message
    with pytest.raises(InputError, match="1 of 2 texts of test are not in the table, empty ones among them"):
        look_up_texts(LoadedData({"test": data.splits["test"]}, ["a"]), table, may_lack=False)


def test_where_texts_may_lack_those_rows_lose_them_and_are_listed(tmp_path: Path) -> None:
    table = TextEmbeddingTable.open(write_table(tmp_path / "t.parquet", ["frog", "lamp"]))
    before = rows_of(["frog", "lamps", "", "tree"])
    found = look_up_texts(LoadedData({"train": before}, ["a"]), table, may_lack=True)
    rows = found.splits["train"]
    assert isinstance(rows, datasets.Dataset)
    assert rows["text"][:] == ["frog", "", "", ""] and rows.column_names == before.column_names
    assert rows["row"][:] == before["row"][:] and rows["image"][:] == before["image"][:]
    assert [(each.split, each.row, each.id) for each in found.bad_examples] == [
        ("train", 2, "row1"),
        ("train", 4, "row3"),
    ]
    assert "is another than" in found.bad_examples[0].reason and "no embedding" in found.bad_examples[1].reason


def test_files_that_are_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such table of text embeddings"):
        TextEmbeddingTable.open(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("id,text\n")
    with pytest.raises(InputError, match="is no parquet file"):
        TextEmbeddingTable.open(tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="is no table of text embeddings"):
        read_table_encoder(tmp_path / "other.parquet")
    path = write_table(tmp_path / "t.parquet", [f"text {number}" for number in range(200)])
    content = bytearray(path.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged|is no parquet file"):
        TextEmbeddingTable.open(path)


def test_a_table_without_any_embedding_is_empty(tmp_path: Path) -> None:
    table = TextEmbeddingTable.open(write_table(tmp_path / "t.parquet", [None, None]))
    assert len(table) == 0 and np.array_equal(table.positions(["a"]), [-1])
