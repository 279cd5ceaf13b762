"""What Trainer's `log_history` holds, as series over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

RATE_PREFIX = "lr/"
"""A log entry's `lr/GROUP` is the learning rate of a parameter group."""

_TRAINING_KEYS = ("loss", "learning_rate")


class Series(NamedTuple):
    """One logged number: steps and values of equal length."""

    steps: list[int]
    values: list[float]


class StageSpan(NamedTuple):
    """A stage and the steps it took: after `start`, up to and with `end`."""

    name: str
    start: int
    end: int


def series(log_history: Sequence[Mapping[str, Any]], key: str) -> Series:
    """All values of one key.

    Where a step has several (the evaluation of the best model when training is over repeats the last step), the first
    one is kept: the one that belongs to the curve.
    """
    by_step: dict[int, float] = {}
    for entry in log_history:
        if key in entry:
            by_step.setdefault(int(entry["step"]), float(entry[key]))
    return Series(sorted(by_step), [by_step[step] for step in sorted(by_step)])


def rate_series(log_history: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Learning rates by group; groups whose curves are equal share one entry, `FIRST … LAST (3 groups)`.

    Without any `lr/GROUP`, Trainer's own `learning_rate` stands alone.
    """
    keys = dict.fromkeys(key for entry in log_history for key in entry if key.startswith(RATE_PREFIX))
    groups: dict[str, Series] = {key.removeprefix(RATE_PREFIX): series(log_history, key) for key in keys}
    if not groups:
        only = series(log_history, "learning_rate")
        return {"learning rate": only} if only.steps else {}
    alike: dict[tuple[tuple[int, ...], tuple[float, ...]], list[str]] = {}
    for group, curve in groups.items():
        alike.setdefault((tuple(curve.steps), tuple(curve.values)), []).append(group)
    return {_joint_name(names): groups[names[0]] for names in alike.values()}


def stage_spans(log_history: Sequence[Mapping[str, Any]]) -> list[StageSpan]:
    """The stages, in order, from the entries that name one.

    A stage ends at the last step that was logged in it, which is its true last step when `logging_steps` divides it.
    """
    spans: list[StageSpan] = []
    for entry in sorted((entry for entry in log_history if "stage" in entry), key=lambda entry: entry["step"]):
        name, step = str(entry["stage"]), int(entry["step"])
        if spans and spans[-1].name == name:
            spans[-1] = spans[-1]._replace(end=step)
        else:
            spans.append(StageSpan(name, spans[-1].end if spans else 0, step))
    return spans


def has_values(log_history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether anything in the log can be drawn."""
    return any(key in _TRAINING_KEYS or key.startswith("eval_") for entry in log_history for key in entry)


def _joint_name(names: Sequence[str]) -> str:
    if len(names) <= 2:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)} groups)"
