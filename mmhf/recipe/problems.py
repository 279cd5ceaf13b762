"""What is wrong with a recipe, one line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmhf.errors import InputError
from mmhf.recipe.cloud_section import hide_secrets
from mmhf.recipe.nearest import did_you_mean
from mmhf.recipe.node import KeyPath, Node, Origin, dotted


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        path: the key, from the recipe's root.
        what: what is wrong with it, and the way out.
        got: the value as messages show it; absent when there is none.
        nearest: valid names that the user may have meant.
        is_secret: the value must not be repeated, as it was written on the command line neither.
    """

    path: KeyPath
    what: str
    got: str | None = None
    nearest: tuple[str, ...] = ()
    is_secret: bool = False

    def line(self, origin: Origin) -> str:
        """The line that the user reads."""
        got = "" if self.got is None else f"; got {self.got}"
        key = f"{dotted(self.path)}: ".replace("\n", "\\n") if self.path else ""
        place = origin.place.partition("=")[0] if self.is_secret else origin.place
        return hide_secrets(f"{place}: {key}{self.what}{got}{did_you_mean(self.nearest)}")


def as_input_error(problems: Iterable[Problem], tree: Node) -> InputError:
    """All problems as one error, a line each, in the order in which they were written."""
    located = [(tree.nearest_origin(problem.path), problem) for problem in problems]
    located.sort(key=lambda pair: (pair[0].overridden, pair[0].source, pair[0].line or 0))
    return InputError("\n".join(dict.fromkeys(problem.line(origin) for origin, problem in located)))
