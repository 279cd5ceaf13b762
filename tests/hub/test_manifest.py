from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmhf.errors import InputError
from mmhf.hub.manifest import Version


def test_numbers_compare_as_numbers_and_suffixes_come_first():
    in_order = ["v0.1", "1.2", "1.9", "v1.10", "1.10.1", "2.0-rc.2", "2.0-rc.10", "2.0_scratch", "2.0", "10.0"]
    shuffled = [in_order[index] for index in (7, 3, 9, 0, 5, 1, 8, 2, 6, 4)]
    assert sorted(shuffled, key=Version.parse) == in_order


@pytest.mark.parametrize("same", ["1.8", "v1.8", "1.8.0", "v1.8.0"])
def test_one_version_has_many_spellings(same: str):
    assert Version.parse(same) == Version.parse("v1.8")
    assert hash(Version.parse(same)) == hash(Version.parse("v1.8"))


@pytest.mark.parametrize("bad", ["", "v", "latest", "1.", "1..2", "../1.8", "1.8/..", "1.8 ", "-1.8", "1.8-"])
def test_what_is_not_a_version_is_refused(bad: str):
    assert not Version.is_valid(bad)
    with pytest.raises(InputError, match="not a version"):
        Version.parse(bad)


numbers = st.lists(st.integers(0, 30), min_size=1, max_size=3).map(tuple)


@given(numbers, numbers)
def test_order_is_that_of_the_padded_numbers(a: tuple[int, ...], b: tuple[int, ...]):
    padded_a, padded_b = (value + (0,) * (3 - len(value)) for value in (a, b))
    assert (Version(a) < Version(b)) == (padded_a < padded_b)
    assert (Version(a) == Version(b)) == (padded_a == padded_b)


@given(numbers, st.sampled_from(["", "-rc.1", "_experiment", ".dev2"]))
def test_text_round_trip(value: tuple[int, ...], suffix: str):
    version = Version(value, suffix)
    assert Version.parse(str(version)) == version
