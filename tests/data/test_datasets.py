from __future__ import annotations

import datasets
import pytest
from torch.utils.data import DataLoader

from mmhf.data.datasets import RowDataset, RowStream
from mmhf.data.samplers import SampleKey
from mmhf.data.table import ROW_FEATURES


@pytest.fixture
def table() -> datasets.Dataset:
    columns = {
        "row": [11, 12, 13],
        "id": ["a", "1e5", "nan"],
        "image": [{"path": "x", "bytes": None}, {"path": None, "bytes": b"y"}, {"path": None, "bytes": None}],
        "text": ["one", "", "three"],
        "label": [0, 1, 0],
    }
    return datasets.Dataset.from_dict(columns, features=ROW_FEATURES)


def test_a_row_carries_the_key_it_was_asked_for_with(table):
    dataset = RowDataset(table)
    assert len(dataset) == 3
    row = dataset[SampleKey(1, 4)]
    assert row == {
        "row": 12, "id": "1e5", "image": {"path": None, "bytes": b"y"}, "text": "", "label": 1, "index": 1, "epoch": 4,
        "draw": 0, "stage": 0,
    }  # fmt: skip
    assert (dataset[2]["id"], dataset[2]["index"], dataset[2]["epoch"]) == ("nan", 2, 0)


def test_a_batch_is_read_in_the_order_asked(table):
    rows = RowDataset(table).__getitems__([SampleKey(2, 1), 0, SampleKey(2, 2)])
    assert [(row["id"], row["index"], row["epoch"]) for row in rows] == [("nan", 2, 1), ("a", 0, 0), ("nan", 2, 2)]


def test_a_loader_reads_each_batch_at_once(table, monkeypatch):
    dataset = RowDataset(table)
    monkeypatch.setattr(RowDataset, "__getitem__", None)  # row by row would cost 25 times as much
    batches = list(DataLoader(dataset, batch_size=2, collate_fn=lambda rows: [row["id"] for row in rows]))
    assert batches == [["a", "1e5"], ["nan"]]


def test_a_stream_carries_the_epoch(table):
    stream = RowStream(table.to_iterable_dataset())
    stream.set_epoch(2)
    assert [(row["row"], row["index"], row["epoch"]) for row in stream] == [(11, 11, 2), (12, 12, 2), (13, 13, 2)]
