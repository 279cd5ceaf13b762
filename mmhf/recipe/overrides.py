"""Overrides from the command line: `a.b=1`, `stages.0.epochs=2`, `a={x: 1}`, `~a.b`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.node import KeyPath, Node, Origin, dotted, merge
from mmhf.recipe.schema_tree import Annotation, annotation_at, takes_list, takes_only_text
from mmhf.recipe.training_arguments import training_fields
from mmhf.recipe.yaml_loader import parse_scalar, parse_yaml

# A key with dots in it, such as a parameter group, goes in quotes: stages.0.learning_rate."vision.stages.0"=1e-5
_KEY_PART = re.compile(
    r"""(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<plain>[^."'=~+\s][^."'=\s]*))(?P<end>\.|$)"""
)

_MAX_PARTS = 32


@dataclass(frozen=True)
class Override:
    """One override.

    Args:
        text: as the user wrote it.
        path: the key; list indices are still text.
        value: what to put there; None removes the key.
        raw: the text after `=` when it is a plain scalar.
    """

    text: str
    path: tuple[str, ...]
    value: Node | None
    raw: str | None = None

    def error(self, what: str) -> InputError:
        return InputError(f"override {self.text}: {what}")


def parse_override(text: str) -> Override:
    """Parse one override.

    A value in brackets, braces or quotes is YAML; any other is one YAML scalar, whatever colons or hashes it contains.

    Raises:
        InputError: for a text that is not KEY=VALUE or ~KEY.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"override {ascii(text)}: not UTF-8 text")
    if "\n" in text or "\r" in text:
        raise InputError(f"override {ascii(text)}: an override is one line")
    if text.startswith("~"):
        return Override(text, _parse_key(text, text[1:]), None)
    matched = re.match(r"""(?:"[^"]*"|'[^']*'|[^"'=])*""", text)
    end = matched.end() if matched else 0  # the first `=` outside quotes
    key, raw = text[:end], text[end + 1 :]
    if text[end : end + 1] != "=":
        raise InputError(f"override {text}: write KEY=VALUE, or ~KEY to remove a key")
    path, origin, raw = _parse_key(text, key.strip()), Origin(text, overridden=True), raw.strip()
    if raw[:1] in ("[", "{", '"', "'"):
        return Override(text, path, parse_yaml(raw, text, origin=origin))
    try:
        return Override(text, path, Node(parse_scalar(raw), origin), raw)
    except ValueError as error:
        raise InputError(f"override {text[:60]}...: the number is too long") from error


def apply_overrides(tree: Node, overrides: Sequence[Override], root: Annotation) -> Node:
    """The recipe with the overrides in it, the later ones over the earlier.

    Args:
        tree: the recipe's root.
        overrides: what to change. A mapping merges into a mapping that is there (`{}` clears it), anything else is
            replaced, keys and the item after a list's last are created.
        root: the annotation of the recipe, or None when its task is unknown. Where it allows only text, a plain
            value is taken as text: `release.version=1.10` is "1.10".

    Raises:
        InputError: for a list index that does not exist and for removing what is not there.
    """
    for override in overrides:
        path = _resolve(override, tree, root)
        if override.value is None:
            tree = _without(tree, path, override)
        else:
            tree = _with(tree, path, _typed(override, path, tree, root))
    return tree


def _parse_key(text: str, key: str) -> tuple[str, ...]:
    if key.startswith("+"):
        raise InputError(f"override {text}: new keys need no +; write {key.lstrip('+')}=VALUE")
    parts, position = [], 0
    while True:
        part = _KEY_PART.match(key, position)
        if part is None:
            raise InputError(f"override {text}: {key!r} is not a key; write names and list indices joined by dots")
        parts.append(next(found for found in part.group("double", "single", "plain") if found is not None))
        position = part.end()
        if not part.group("end"):
            break
    if len(parts) > _MAX_PARTS:
        raise InputError(f"override {text[:60]}...: no key has {len(parts)} parts")
    return tuple(parts)


def _resolve(override: Override, tree: Node, root: Annotation) -> KeyPath:
    """The override's key with numbers for list indices."""
    path: list[str | int] = []
    values = tree.plain()
    node: Node | None = tree
    for part in override.path:
        is_list = (
            isinstance(node.value, list)
            if node is not None and node.value is not None
            else takes_list(annotation_at(root, tuple(path), values))
        )
        path.append(_index(override, part, path, node) if is_list else part)
        node = node.child(path[-1]) if node is not None else None
    if path == ["extends"]:
        raise override.error("`extends` is read before overrides; write it in the recipe")
    return tuple(path)


def _index(override: Override, part: str, path: list[str | int], node: Node | None) -> int:
    length = len(node.value) if node is not None and node.value is not None else 0
    if not re.fullmatch(r"[0-9]{1,9}", part):
        raise override.error(f"{dotted(tuple(path))} is a list, {part!r} is not one of its indices")
    if int(part) > length or (override.value is None and int(part) == length):
        has = f"has {length} item{'s' * (length != 1)}, counted from 0"
        raise override.error(f"{dotted(tuple(path))} {has}, so there is no {part}")
    return int(part)


def _typed(override: Override, path: KeyPath, tree: Node, root: Annotation) -> Node:
    value = override.value
    assert value is not None
    if override.raw is None or value.value is None or isinstance(value.value, str):
        return value
    is_training = len(path) == 2 and path[0] == "training"
    annotation = training_fields().get(str(path[1])) if is_training else annotation_at(root, path, tree.plain())
    text_only = takes_only_text(annotation)
    return Node(override.raw, value.origin) if text_only else value


def _with(node: Node, path: KeyPath, new: Node) -> Node:
    if not path:
        # `{}` clears: merged into a mapping it would change nothing.
        return new if new.value == {} else merge(node, new)
    part, rest = path[0], path[1:]
    if isinstance(part, int):
        items = list(node.value) if isinstance(node.value, list) else []
        base = items[part] if part < len(items) else Node(None, new.origin)
        items[part : part + 1] = [_with(base, rest, new)]
        return Node(items, node.origin)
    children = dict(node.value) if isinstance(node.value, dict) else {}
    origin = node.origin if isinstance(node.value, dict) else new.origin
    children[part] = _with(children.get(part, Node(None, new.origin)), rest, new)
    return Node(children, origin)


def _without(node: Node, path: KeyPath, override: Override) -> Node:
    part, rest = path[0], path[1:]
    child = node.child(part)
    if child is None or (rest and not isinstance(child.value, dict | list)):
        names = list(node.value) if isinstance(node.value, dict) else []
        near = did_you_mean(nearest_names(str(part), names))
        raise override.error(f"there is no {dotted(override.path)} to remove{near}")
    if isinstance(node.value, list):
        kept = [_without(child, rest, override)] if rest else []
        return Node([*node.value[: int(part)], *kept, *node.value[int(part) + 1 :]], node.origin)
    children = dict(node.value)
    if rest:
        children[part] = _without(child, rest, override)
    else:
        del children[part]
    return Node(children, node.origin)
