from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils.data import DataLoader

from mmhf.data.datasets import RowDataset
from mmhf.data.samplers import EpochSampler, SampleKey, derive_seed, draw_rows, sample_seed
from mmhf.data.table import ROW_FEATURES


def _rows(count: int, weights: list[float] | None = None) -> RowDataset:
    columns = {
        "row": list(range(1, count + 1)),
        "id": [str(number) for number in range(count)],
        "image": [{"path": None, "bytes": None}] * count,
        "text": ["text"] * count,
        "label": [0] * count,
    }
    return RowDataset(datasets.Dataset.from_dict(columns, features=ROW_FEATURES), weights=weights)


def _keys(rows: list[dict]) -> list[SampleKey]:
    return [SampleKey(row["index"], row["epoch"]) for row in rows]


def _order(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return [key.index for key in sampler]


def test_order_depends_on_seed_and_epoch_alone():
    first, again, other = EpochSampler(50, seed=1), EpochSampler(50, seed=1), EpochSampler(50, seed=2)
    torch.manual_seed(123)
    assert _order(first, 3) == _order(again, 3)
    assert sorted(_order(first, 3)) == list(range(50))
    assert len({tuple(_order(sampler, epoch)) for sampler in (first, other) for epoch in range(4)}) == 8


def test_sampling_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(EpochSampler(20, seed=9))
    assert torch.equal(torch.rand(3), expected)


def test_keys_carry_the_epoch_they_were_drawn_in():
    sampler = EpochSampler(4)
    sampler.set_epoch(7)
    assert {key.epoch for key in sampler} == {7}


def test_derived_seeds_differ_and_are_stable():
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3) == 6520558355739401531
    assert len({derive_seed(seed, epoch, row) for seed in range(5) for epoch in range(5) for row in range(50)}) == 1250


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("skipped", [0, 2])
def test_accelerate_passes_the_epoch_on(processes, skipped):
    dataset = _rows(24)
    expected = _order(EpochSampler(24, seed=3), 5)
    seen: list[SampleKey] = []
    for rank in range(processes):
        loader = DataLoader(dataset, batch_size=2, sampler=dataset.epoch_sampler(3), collate_fn=_keys)
        prepared = prepare_data_loader(
            loader, torch.device("cpu"), num_processes=processes, process_index=rank, put_on_device=False
        )
        if skipped:
            prepared = skip_first_batches(prepared, skipped)
        prepared.set_epoch(5)
        seen += [key for batch in prepared.base_dataloader for key in batch]
    assert {key.epoch for key in seen} == {5}
    assert sorted(key.index for key in seen) == sorted(expected[2 * skipped * processes :])


def test_rows_are_drawn_in_proportion_to_their_weights():
    weights = [1.0, 0.0, 3.0, 6.0] * 2500
    sampler = EpochSampler(10_000, seed=1, weights=weights)
    drawn = torch.tensor(_order(sampler, 0)) % 4
    shares = drawn.bincount(minlength=4) / len(drawn)
    assert len(drawn) == 10_000 and shares[1] == 0
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.0, 0.3, 0.6]), atol=0.02, rtol=0)
    assert _order(sampler, 0) == _order(EpochSampler(10_000, seed=1, weights=weights), 0) != _order(sampler, 1)


def test_a_row_drawn_again_in_an_epoch_looks_different():
    sampler = EpochSampler(50, seed=3, weights=[1.0] * 49 + [20.0])
    keys = list(sampler)
    assert len(set(keys)) == 50 == len({sample_seed(7, key) for key in keys})
    draws = [key.draw for key in keys if key.index == 49]
    assert sorted(draws) == list(range(len(draws))) and len(draws) > 5


def test_the_first_draw_looks_as_it_would_without_weights():
    assert sample_seed(7, SampleKey(4, 2)) == derive_seed(7, 2, 4) != sample_seed(7, SampleKey(4, 2, 1))
    assert SampleKey(4, 2).numbers == (4, 2)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_weighted_draws_are_shared_out_among_processes(processes):
    weights = [1.0, 5.0] * 12
    expected = list(EpochSampler(24, seed=3, weights=weights))
    seen = []
    for rank in range(processes):
        dataset = _rows(24, weights)
        loader = DataLoader(dataset, batch_size=2, sampler=dataset.epoch_sampler(3), collate_fn=_keys)
        prepared = prepare_data_loader(
            loader, torch.device("cpu"), num_processes=processes, process_index=rank, put_on_device=False
        )
        seen.append([key for batch in prepared.base_dataloader for key in batch])
    together = [key for step in zip(*(_in_pairs(keys) for keys in seen), strict=True) for pair in step for key in pair]
    assert [(key.index, key.epoch) for key in together] == [(key.index, key.epoch) for key in expected]


def _in_pairs(keys: list[SampleKey]) -> list[list[SampleKey]]:
    return [keys[start : start + 2] for start in range(0, len(keys), 2)]


@given(
    arrays(np.float64, st.integers(1, 30), elements=st.floats(0.0, 5.0)).filter(lambda weights: weights.sum() > 0.1),
    st.integers(0, 2**60),
)
def test_draws_number_the_repetitions_of_each_row(weights, seed):
    rows, draws = draw_rows(np.cumsum(weights), 40, seed)
    assert (weights[rows] > 0).all()
    for row in set(rows.tolist()):
        assert sorted(draws[rows == row]) == list(range((rows == row).sum()))
