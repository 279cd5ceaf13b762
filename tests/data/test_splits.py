from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.data.splits import split_positions
from mmhf.recipe.row_sections import SplitSection

rows = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12) | st.none()), max_size=120)
sections = st.builds(
    SplitSection,
    validation=st.sampled_from([0.0, 0.1, 0.25]),
    test=st.sampled_from([0.0, 0.2, 0.4]),
    stratify=st.booleans(),
    seed=st.integers(0, 5),
)


@settings(max_examples=60, deadline=None)
@given(rows, sections, st.booleans())
def test_each_row_is_in_one_split_and_no_group_spans_two(values, section, grouped):
    labels = [label for label, _ in values]
    groups = [None if group is None else str(group) for _, group in values] if grouped else None
    splits = split_positions(section, labels, groups)
    assert sorted(position for positions in splits.values() for position in positions) == list(range(len(values)))
    assert all(positions == sorted(positions) for positions in splits.values())
    assert set(splits) == {"train"} | {name for name in ("validation", "test") if getattr(section, name) > 0}
    if groups is not None:
        homes = [{groups[position] for position in positions} - {None} for positions in splits.values()]
        assert sum(map(len, homes)) == len(set().union(*homes))
    assert splits == split_positions(section, labels, groups)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("aaaaab"), min_size=20, max_size=300), st.integers(0, 3))
def test_sizes_and_proportions_are_met(labels, seed):
    section = SplitSection(validation=0.2, test=0.3, seed=seed)
    splits = split_positions(section, labels)
    for name, share in (("train", 0.5), ("validation", 0.2), ("test", 0.3)):
        assert abs(len(splits[name]) - share * len(labels)) <= 1
        counts = Counter(labels[position] for position in splits[name])
        for label, total in Counter(labels).items():
            assert abs(counts[label] - share * total) <= 2


def test_grouped_splits_come_near_sizes_and_proportions():
    groups = [str(number % 97) for number in range(2000)]
    labels = ["rare" if int(group) % 10 == 0 else "common" for group in groups]
    splits = split_positions(SplitSection(validation=0.1, test=0.2), labels, groups)
    assert len(splits["validation"]) == pytest.approx(200, abs=45)
    assert len(splits["test"]) == pytest.approx(400, abs=45)
    for name in ("validation", "test"):
        assert any(labels[position] == "rare" for position in splits[name])


def test_the_seed_changes_the_cut():
    labels = ["a", "b"] * 50
    cuts = {tuple(split_positions(SplitSection(seed=seed), labels)["test"]) for seed in range(4)}
    assert len(cuts) == 4
