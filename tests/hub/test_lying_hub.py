"""A Hub that fails and lies at random requests: a push is whole or not there, and what goes wrong is one line."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

sys.path.insert(0, str(Path(__file__).parents[1] / "campaigns"))

from hub_lies import hub_campaign
from trials import table


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_pushes_and_downloads_are_whole_or_told(
    hub: LoopbackHub, make_run: Callable[..., Path], tmp_path: Path, no_waiting: list[float], seed: int
):
    tally = hub_campaign(hub, make_run, tmp_path, 25, random.Random(seed))
    assert not tally.notes, f"{table([tally])}\n" + "\n".join(tally.notes)
