"""Suggestions for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest_names(name: str, valid: Iterable[str]) -> tuple[str, ...]:
    """The names in `valid` that a user who wrote `name` most likely meant.

    Args:
        name: what was written.
        valid: what could have been written.

    Returns:
        All names at the smallest edit distance, when that is small for the length of `name`; otherwise up to three
        names that begin with it; otherwise the one most similar name, when it is similar at all.
    """
    names = list(dict.fromkeys(valid))
    distances = {candidate: edit_distance(name.lower(), candidate.lower()) for candidate in names}
    smallest = min(distances.values(), default=0)
    if smallest <= max(1, len(name) // 4):
        return tuple(candidate for candidate in names if distances[candidate] == smallest)
    longer = [candidate for candidate in names if len(name) >= 3 and candidate.startswith(name)]
    return tuple(longer[:3] or difflib.get_close_matches(name, names, n=1, cutoff=0.6))


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours that turn `first` into `second`."""
    before_previous: list[int] = []
    previous = list(range(len(second) + 1))
    for row, a in enumerate(first, start=1):
        current = [row]
        for column, b in enumerate(second, start=1):
            cost = min(previous[column] + 1, current[column - 1] + 1, previous[column - 1] + (a != b))
            if row > 1 and column > 1 and a == second[column - 2] and first[row - 2] == b:
                cost = min(cost, before_previous[column - 2] + 1)
            current.append(cost)
        before_previous, previous = previous, current
    return previous[-1]


def did_you_mean(names: Iterable[str]) -> str:
    """`; did you mean a or b?`, or nothing when there are no names."""
    listed = " or ".join(names)
    return f"; did you mean {listed}?" if listed else ""
