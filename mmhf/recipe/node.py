"""A recipe as it was written: values that remember where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
        if isinstance(self.value, dict):
            return self.value.get(part)
        if isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None

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


def shown(value: Any) -> str:
    """A value as messages show it: like YAML's flow style, cut when long."""
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, bool | dict | list) or value is None:
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
