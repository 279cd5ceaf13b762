"""The campaigns in their short form; `make campaigns` runs the long one (docs/reliability.md)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from damages import PLACES, damage_campaign
from fuzz import fuzz_campaign
from growth import rows_campaign, steps_campaign
from kills import kill_campaign
from together import together_campaign
from trials import Tally, table
from world import VERBS, World, quick_verbs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with quick_verbs():
        yield World(tmp_path_factory.mktemp("world"))


def assert_all_told(*tallies: Tally) -> None:
    notes = [note for tally in tallies for note in tally.notes]
    assert not notes, f"{table(tallies)}\n" + "\n".join(notes)


def test_fuzzed_inputs_are_read_or_refused(tmp_path: Path):
    tallies = fuzz_campaign(tmp_path, 500, random.Random(1))
    assert sum(tally.tried for tally in tallies) == 500
    assert_all_told(*tallies)


@pytest.mark.slow
def test_verbs_that_are_stopped_end_as_if_they_never_were(world: World, tmp_path: Path):
    assert_all_told(*kill_campaign(world, tmp_path, len(VERBS), random.Random(1)))


@pytest.mark.slow
def test_damage_is_told_or_changes_nothing(world: World, tmp_path: Path):
    assert_all_told(*damage_campaign(world, tmp_path, len(PLACES), random.Random(1)))


@pytest.mark.slow
def test_two_of_a_kind_at_the_same_time(world: World, tmp_path: Path):
    assert_all_told(together_campaign(world, tmp_path, 3, random.Random(1)))


@pytest.mark.slow
def test_more_rows_and_steps_need_no_more_memory(world: World, tmp_path: Path):
    growths = [*rows_campaign(world, tmp_path, 200, 2_000), *steps_campaign(world, tmp_path, 20, 100)]
    assert not [str(growth) for growth in growths if growth.is_too_large]
