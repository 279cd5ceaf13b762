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
from mmhf.data.samplers import (
    EpochSampler,
    SampleKey,
    derive_seed,
    draw_rows,
    order_beside_neighbours,
    sample_seed,
    steps_of_like_length,
)
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


def _caption_lengths(count: int) -> np.ndarray:
    return np.random.default_rng(1).lognormal(2.5, 0.5, count).astype(np.int64) + 5


def _padded(lengths: np.ndarray, order: list[int], step: int) -> float:
    """Share of tokens that are padding, where each step is padded to its longest."""
    batches = [lengths[order[start : start + step]] for start in range(0, len(order), step)]
    return 1 - lengths.sum() / sum(batch.max() * len(batch) for batch in batches)


def test_steps_of_like_length_pad_little():
    lengths = _caption_lengths(5000)
    plain, grouped = EpochSampler(5000, seed=2), EpochSampler(5000, seed=2)
    grouped.group_by_length(lambda keys: lengths[keys[:, 0]], 32)
    assert _padded(lengths, _order(plain, 1), 32) > 0.4
    assert _padded(lengths, _order(grouped, 1), 32) < 0.08
    assert sorted(_order(grouped, 1)) == list(range(5000))
    assert _order(grouped, 1) != _order(grouped, 2)
    firsts = [lengths[_order(grouped, epoch)[:32]].mean() for epoch in range(12)]
    assert np.std(firsts) > 2  # steps come in random order, not the short ones first


def test_rows_by_length_depend_on_seed_epoch_and_step_alone():
    lengths = _caption_lengths(103)

    def order(seed, step):
        sampler = EpochSampler(103, seed=seed)
        sampler.group_by_length(lambda keys: lengths[keys[:, 0]], step)
        return _order(sampler, 4)

    torch.manual_seed(5)
    assert order(1, 8) == order(1, 8)
    assert len({tuple(order(seed, step)) for seed in (1, 2) for step in (4, 8)}) == 4
    sampler = EpochSampler(103, seed=1)
    sampler.group_by_length(lambda keys: lengths[keys[:, 0]], 8)
    sampler.start_epoch(4, at=24)
    assert [key.index for key in sampler] == order(1, 8)[24:]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 2**60))
def test_no_sample_is_lost_and_the_rest_comes_last(lengths, step, seed):
    order = steps_of_like_length(np.array(lengths), step, seed)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    whole = len(lengths) // step * step
    assert order[whole:].tolist() == list(range(whole, len(lengths)))


def test_lengths_are_those_of_the_texts_of_an_epoch():
    rows = _rows(3)
    assert rows.lengths(np.array([[2, 0, 0], [0, 5, 0]])).tolist() == [4, 4]


@pytest.mark.parametrize(("per_sample", "step_samples"), [(1, 8), (2, 9), (3, 10), (7, 5)])
def test_neighbours_stand_in_one_step(per_sample: int, step_samples: int):
    rng = np.random.default_rng(per_sample)
    for count in (1, 7, 64, 301):
        neighbours = np.stack([np.resize(rng.permutation(count), 4) for _ in range(count)])
        neighbours[rng.random((count, 4)) < 0.2] = -1
        neighbours = neighbours if count >= 4 else np.full((count, 4), -1)
        chosen = rng.permutation(count)[: max(count * 3 // 4, 1)]
        order = order_beside_neighbours(chosen, neighbours, per_sample, step_samples)
        assert sorted(order) == sorted(chosen)
        free, groups = set(chosen.tolist()), []
        for sample in chosen.tolist():
            if sample in free:
                free.discard(sample)
                taken = [each for each in neighbours[sample].tolist() if each in free][:per_sample]
                free.difference_update(taken)
                groups.append([sample, *taken])
        step_of = {sample: place // step_samples for place, sample in enumerate(order.tolist())}
        cut = [group for group in groups if len({step_of[sample] for sample in group}) > 1]
        whole_steps = len(chosen) // step_samples
        # At most one group a step is cut, and none where groups always fit.
        assert len(cut) <= (0 if step_samples % (per_sample + 1) == 0 and per_sample == 1 else whole_steps + 1)
