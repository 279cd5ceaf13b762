"""A recipe as a tree of values with their origins (file and line, or override), and the problems found in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean
from mmhf.recipe.sections import hide_secrets

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Origin:
    """Where a value was written.

    Args:
        source: a file as the user named it, or an override as the user wrote it.
        line: 1-based line of the key in a file.
        overridden: the value was given as an override.
    """

    source: str
    line: int | None = None
    overridden: bool = False

    @property
    def place(self) -> str:
        """How error messages name it."""
        if self.overridden:
            return f"override {self.source}"
        return self.source if self.line is None else f"{self.source}:{self.line}"

    @property
    def provenance(self) -> str:
        """How a plan names it."""
        return "override" if self.overridden else self.place


@dataclass(frozen=True)
class Node:
    """A value of a recipe: a mapping or list of nodes, or a scalar."""

    value: Any
    origin: Origin

    def plain(self) -> Any:
        """The value without its origins."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, part: str | int) -> Node | None:
        found: Node | None = None
        if isinstance(self.value, dict):
            found = self.value.get(part)
        elif isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            found = self.value[part]
        return found

    def find(self, path: KeyPath) -> Node | None:
        """The node at `path`, if something was written there."""
        node: Node | None = self
        for part in path:
            node = node.child(part) if node is not None else None
        return node

    def nearest_origin(self, path: KeyPath) -> Origin:
        """The origin of `path`, or of the innermost enclosing value that was written."""
        node = self
        for part in path:
            child = node.child(part)
            if child is None:
                break
            node = child
        return node.origin

    def walk(self) -> Iterator[Node]:
        """This node and all nodes under it."""
        yield self
        children = self.value.values() if isinstance(self.value, dict) else self.value
        if isinstance(self.value, dict | list):
            for child in children:
                yield from child.walk()


def merge(base: Node, top: Node) -> Node:
    """Lay `top` over `base`: mappings merge key by key, everything else is replaced."""
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    merged = dict(base.value)
    for key, child in top.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Node(merged, top.origin)


def dotted(path: KeyPath) -> str:
    """`("stages", 0, "epochs")` as `stages.0.epochs`."""
    return ".".join(str(part) for part in path)


def shown(value: object) -> str:
    """A value as messages show it: like YAML's flow style, cut when long."""
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, bool | dict | list) or value is None:
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        path: the key, from the recipe's root.
        what: what is wrong with it, and the way out.
        got: the value as messages show it; absent when there is none.
        nearest: valid names that the user may have meant.
        is_secret: the value must not be shown, nor the override that it came from.
    """

    path: KeyPath
    what: str
    got: str | None = None
    nearest: tuple[str, ...] = ()
    is_secret: bool = False

    def line(self, origin: Origin) -> str:
        """The message for the user."""
        got = "" if self.got is None else f"; got {self.got}"
        key = f"{dotted(self.path)}: ".replace("\n", "\\n") if self.path else ""
        place = origin.place.partition("=")[0] if self.is_secret else origin.place
        return hide_secrets(f"{place}: {key}{self.what}{got}{did_you_mean(self.nearest)}")


def as_input_error(problems: Iterable[Problem], tree: Node) -> InputError:
    """All problems as one error, a line each, in the order in which they were written."""
    located = [(tree.nearest_origin(problem.path), problem) for problem in problems]
    located.sort(key=lambda pair: (pair[0].overridden, pair[0].source, pair[0].line or 0))
    return InputError("\n".join(dict.fromkeys(problem.line(origin) for origin, problem in located)))
