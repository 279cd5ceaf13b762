from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmhf.data.columns import image_array
from mmhf.data.datasets import RowDataset
from mmhf.data.read_ahead import ReadAhead, find_run, reads_ahead
from mmhf.data.remote.files import RemoteFiles
from mmhf.data.remote.images import RemoteImageFeature
from mmhf.data.table import as_dataset

_ROWS = 40


def image_table(images: list[dict[str, Any]], rows: list[int], feature: Any = None) -> datasets.Dataset:
    return as_dataset(pa.table({"row": rows, "image": image_array(images)}), feature)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the images that were fetched ahead."""
    numbers: list[int] = []
    monkeypatch.setattr(RemoteFiles, "prefetch", lambda files, file: numbers.append(int(file.name)))
    monkeypatch.setattr(RemoteFiles, "start", lambda files, file: lambda: b"")
    return numbers


def _table(prefetch: int, weights: Sequence[float] | None = None) -> RowDataset:
    images = [{"path": f"memory://ahead/{number}#1-", "bytes": None} for number in range(_ROWS)]
    feature = RemoteImageFeature("memory://ahead", "/nowhere", 1, 1, 0, prefetch)
    return RowDataset(image_table(images, list(range(_ROWS)), feature), weights=weights)


@pytest.mark.parametrize("weights", [None, np.arange(_ROWS) + 1])
def test_the_next_batches_of_a_shuffled_epoch_are_fetched_once(
    fetched: list[int], weights: Sequence[float] | None
) -> None:
    data = _table(prefetch=2, weights=weights)
    sampler = data.epoch_sampler(seed=3)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        fetched.clear()
        for start in range(0, _ROWS, 8):
            data.__getitems__(keys[start : start + 8])
            assert fetched == [key.index for key in keys[8 : start + 24]]


def test_a_worker_learns_which_batches_are_its_own(fetched: list[int]) -> None:
    """The second of two workers of the second of two processes gets batches 3, 7, 11, ..."""
    data = _table(prefetch=1)
    keys = list(data.epoch_sampler(seed=3))
    batches = [keys[start : start + 2] for start in range(0, _ROWS, 2)]
    for number in (3, 7, 11):
        fetched.clear()
        data.__getitems__(batches[number])
        expected = batches[number + (1 if number == 3 else 4)]
        assert fetched == [key.index for key in expected]


def test_an_evaluation_goes_in_order(fetched: list[int]) -> None:
    data = _table(prefetch=1)
    data.__getitems__(range(8, 16))
    assert fetched == list(range(16, 24))


def test_rows_that_do_not_follow_each_other_fetch_nothing(fetched: list[int]) -> None:
    data = _table(prefetch=1)
    data.__getitems__([3, 9, 1])
    assert fetched == []


def test_without_prefetch_or_urls_nothing_is_read_ahead() -> None:
    assert reads_ahead(_table(prefetch=1).table)
    assert not reads_ahead(_table(prefetch=0).table)
    assert not reads_ahead(image_table([{"path": "a.jpg", "bytes": None}], [1]))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_a_run_is_found_at_the_first_place_that_it_is_at(order: list[int], data: st.DataObject) -> None:
    run = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    places = [place for place in range(len(order)) if order[place : place + len(run)] == run]
    assert find_run(np.array(order), run) == (places[0] if places else None)


def test_missing_images_are_passed_over(fetched: list[int]) -> None:
    images = [{"path": "memory://ahead/0#missing", "bytes": None}, {"path": None, "bytes": None}]
    table = image_table([*images, {"path": "memory://ahead/2#1-", "bytes": None}], [1, 2, 3])
    table = table.cast_column("image", RemoteImageFeature("memory://ahead", "/nowhere", 1, 1, 0, 3))
    ReadAhead(table, lambda epoch: np.arange(3)).after(0, [0])
    assert fetched == [2]
