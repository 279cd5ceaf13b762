from __future__ import annotations

import datasets
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from mmhf.data.datasets import RowDataset
from mmhf.data.rows import ROW_FEATURES
from mmhf.data.samplers import EpochSampler, SampleKey, derive_seed


def _rows(count: int) -> RowDataset:
    columns = {
        "row": list(range(1, count + 1)),
        "id": [str(number) for number in range(count)],
        "image": [{"path": None, "bytes": None}] * count,
        "text": ["text"] * count,
        "label": [0] * count,
    }
    return RowDataset(datasets.Dataset.from_dict(columns, features=ROW_FEATURES))


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
