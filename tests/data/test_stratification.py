"""Iterative stratification against a plain transcription of the paper's algorithm."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from mmhf.data.splits import split_positions
from mmhf.data.stratification import iterative_stratification
from mmhf.recipe.row_sections import SplitSection

SHARES = np.array([0.6, 0.2, 0.2])


def labels_of(count: int, seed: int) -> np.ndarray:
    """Labels from frequent to rare, and rows without any."""
    return (np.random.default_rng(seed).random((count, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]).astype(np.int8)


def as_published(matrix: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sechidis et al., 2011, algorithm 1, line by line, with sets."""
    order = rng.permutation(len(matrix))
    rows = {number: set(np.flatnonzero(matrix[row]).tolist()) for number, row in enumerate(order)}
    subset_of = {}
    wanted = [len(rows) * share for share in shares]
    wanted_of = {
        label: [sum(label in labels for labels in rows.values()) * share for share in shares]
        for label in range(matrix.shape[1])
    }

    def give(number: int, desired: list[float]) -> None:
        most = [subset for subset in range(len(shares)) if desired[subset] == max(desired)]
        most = [subset for subset in most if wanted[subset] == max(wanted[each] for each in most)]
        chosen = most[0] if len(most) == 1 else most[rng.integers(len(most))]
        subset_of[number] = chosen
        for label in rows.pop(number):
            wanted_of[label][chosen] -= 1
        wanted[chosen] -= 1

    while any(rows.values()):
        left = {label: sum(label in labels for labels in rows.values()) for label in wanted_of}
        rarest = min((label for label in left if left[label]), key=lambda label: left[label])
        for number in [number for number, labels in rows.items() if rarest in labels]:
            give(number, wanted_of[rarest])
    for number in list(rows):
        give(number, wanted)
    assigned = np.empty(len(matrix), dtype=np.int64)
    assigned[order] = [subset_of[number] for number in range(len(matrix))]
    return assigned


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_dealt_as_published(seed):
    matrix = labels_of(300, seed)
    found = iterative_stratification(matrix, SHARES, np.random.default_rng(seed))
    assert np.array_equal(found, as_published(matrix, SHARES, np.random.default_rng(seed)))


def test_each_split_has_its_share_of_each_label():
    matrix = labels_of(1000, 7)
    found = iterative_stratification(matrix, SHARES, np.random.default_rng(0))
    for split, share in enumerate(SHARES):
        own = matrix[found == split]
        assert abs(len(own) - share * len(matrix)) <= 12
        assert (np.abs(own.sum(axis=0) - share * matrix.sum(axis=0)) <= 3).all()
    drawn = np.random.default_rng(0).choice(3, size=1000, p=SHARES)
    worst = [max(np.abs((matrix[of == 1].sum(axis=0) / matrix.sum(axis=0)) - 0.2)) for of in (found, drawn)]
    assert worst[0] < worst[1] / 2, "no better than dealing at random"


def test_a_split_section_stratifies_lists_with_and_without_groups():
    matrix = labels_of(600, 3)
    sets = pa.chunked_array([pa.array([[f"l{place}" for place in np.flatnonzero(row)] for row in matrix])])
    section = SplitSection(validation=0.2, test=0.2)
    groups = [str(number // 3) for number in range(600)]
    for given in (None, groups):
        splits = split_positions(section, sets, given)
        assert sorted(sum(splits.values(), [])) == list(range(600))
        for name in ("validation", "test"):
            assert (np.abs(matrix[splits[name]].sum(axis=0) - 0.2 * matrix.sum(axis=0)) <= 4).all()
        assert splits == split_positions(section, sets, given)
    homes = [{groups[position] for position in positions} for positions in splits.values()]
    assert sum(map(len, homes)) == 200
    nobody = split_positions(section, pa.chunked_array([pa.array([[]] * 10, pa.list_(pa.string()))]))
    assert {name: len(rows) for name, rows in nobody.items()} == {"train": 6, "validation": 2, "test": 2}
