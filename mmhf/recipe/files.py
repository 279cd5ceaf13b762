"""Recipe files: finding them, and following `extends:`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.node import Node, merge, shown
from mmhf.recipe.schema_tree import alternatives, annotation_at, is_section, sections_for
from mmhf.recipe.yaml_loader import load_yaml

_LISTED = 5


def read_recipe(path: str, root_of: Callable[[Any], Any]) -> Node:
    """Read a recipe file with all that it extends.

    Args:
        path: the file, as messages will name it.
        root_of: gives the annotation of a recipe by its values, or None when its task is unknown.

    Returns:
        The merged mapping, without `extends`.

    Raises:
        InputError: for a missing file, a file that is no mapping, and files that extend each other in a circle.
    """
    return _read(path, (), root_of)


def drop_replaced(tree: Node, before: Any, after: Any, root: Any) -> Node:
    """`tree` without the keys that belonged to a tag value (`data.source`) that changed.

    Keys that every alternative has, such as `image_size`, stay; those that mean something else in each, such as
    `path`, go, unless an override gave them.

    Args:
        tree: what to take the keys from.
        before: the values with the old tag.
        after: the values with the new tag.
        root: the annotation of `tree`.
    """
    if not (isinstance(tree.value, dict) and isinstance(before, dict) and isinstance(after, dict)):
        return tree
    old, new = sections_for(root, before), sections_for(root, after)
    several = sum(is_section(member) for member in alternatives(root)) > 1
    children = tree.value
    if several and len(old) == len(new) == 1 and old != new:
        shared = old[0].__base__
        names = shared.model_fields if is_section(shared) else {}
        children = {key: child for key, child in children.items() if key in names or _has_override(child)}
    return Node(
        {
            key: drop_replaced(child, before.get(key), after.get(key), annotation_at(root, (key,), after))
            for key, child in children.items()
        },
        tree.origin,
    )


def _has_override(tree: Node) -> bool:
    return any(node.origin.overridden for node in tree.walk())


def _read(path: str, extended_by: tuple[str, ...], root_of: Callable[[Any], Any]) -> Node:
    if not os.path.isfile(path):
        raise InputError(_missing(path))
    tree = load_yaml(Path(path), path)
    if tree.value is None:
        raise InputError(f"{path}: the recipe is empty, it needs at least `task` and `data`")
    if not isinstance(tree.value, dict):
        raise InputError(f"{tree.origin.place}: a recipe must be a mapping; got {shown(tree.plain())}")
    extends = tree.value.get("extends")
    if extends is None:
        return tree
    own = Node({key: child for key, child in tree.value.items() if key != "extends"}, tree.origin)
    base = _read_base(path, extends, (*extended_by, path), root_of)
    merged = merge(base, own).plain()
    return merge(drop_replaced(base, base.plain(), merged, root_of(merged)), own)


def _read_base(path: str, extends: Node, chain: tuple[str, ...], root_of: Callable[[Any], Any]) -> Node:
    place = f"{extends.origin.place}: extends"
    if not isinstance(extends.value, str) or not extends.value:
        raise InputError(f"{place}: must be the path of a recipe; got {shown(extends.plain())}")
    base = os.path.normpath(os.path.join(os.path.dirname(path), extends.value))
    if os.path.realpath(base) in [os.path.realpath(link) for link in chain]:
        raise InputError(f"{place}: recipes extend each other in a circle: {' -> '.join((*chain, base))}")
    if not os.path.isfile(base):
        raise InputError(f"{place}: {_missing(base)}")
    return _read(base, chain, root_of)


def _missing(path: str) -> str:
    file, is_folder = Path(path), os.path.isdir(path)
    what = "is a folder, not a recipe file" if is_folder else "no such recipe file"
    nearby = _nearby(file if is_folder else file.parent)
    # By file name first: a mistyped folder should not outweigh the name that is right.
    nearest = nearest_names(path, nearby) or tuple(name for name in nearby if Path(name).stem == file.stem)[:_LISTED]
    if nearest:
        return f"{path}: {what}{did_you_mean(nearest)}"
    listed = ", ".join(nearby[:_LISTED]) + (", ..." if len(nearby) > _LISTED else "")
    return f"{path}: {what}" + (f"; recipes nearby: {listed}" if nearby else "")


def _nearby(folder: Path) -> list[str]:
    """Recipe files in the innermost existing folder of this path and one level below."""
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    found = itertools.chain(folder.glob("*.yaml"), folder.glob("*/*.yaml"))
    return sorted(str(name) for name in itertools.islice(found, 500))
