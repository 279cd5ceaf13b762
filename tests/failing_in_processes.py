"""What processes of a run are told when one of them fails; called in each of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate import PartialState

from mmhf.errors import DamagedError
from mmhf.parallel import failing_together, from_first

Told = tuple[str, str, bool]
"""Type and text of an error, and whether its traceback shows who raised it."""


def told_in_each_case(rank: int) -> list[Told | str]:
    """Fail in one process after the other, and in both."""
    PartialState(cpu=True)
    full, broken = (
        OSError(28, "No space left on device", "/full"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no\nway"),
    )
    return [
        _told(partial(_fail, rank, {1: full})),
        _told(partial(_fail, rank, {0: DamagedError("store: is damaged; remove it")})),
        _told(partial(_fail, rank, {0: full, 1: broken})),
        _told(partial(from_first, partial(_raise, broken))),
        from_first(lambda: f"decided in {rank}"),
    ]


def _fail(rank: int, errors: dict[int, Exception]) -> None:
    with failing_together():
        if rank in errors:
            _raise(errors[rank])


def _raise(error: Exception) -> Any:
    raise error


def _told(call: Callable[[], object]) -> Told:
    try:
        call()
    except Exception as error:  # noqa: BLE001  (all are told)
        return type(error).__name__, str(error), _raise.__name__ in "".join(traceback.format_exception(error))
    raise AssertionError("went on")
