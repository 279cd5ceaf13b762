"""From a recipe file and overrides to a validated recipe that knows where each value came from."""

from __future__ import annotations

import functools
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmhf.errors import InputError
from mmhf.files import expand_path
from mmhf.recipe.by_task import RECIPE_BY_TASK
from mmhf.recipe.combinations import combination_problems
from mmhf.recipe.node import KeyPath, Node, Origin, Problem, as_input_error, dotted, merge, shown
from mmhf.recipe.overrides import Override, apply_overrides, parse_override
from mmhf.recipe.schema import RecipeBase
from mmhf.recipe.schema_tree import Annotation, alternatives, annotation_at, is_section, key_paths, sections_for
from mmhf.recipe.shipped import find_recipe, is_shipped, missing_recipe
from mmhf.recipe.training_arguments import training_fields, training_problems, without_unset_fields
from mmhf.recipe.validation import check_section, tag_problems
from mmhf.recipe.yaml_loader import dump_yaml, load_yaml
from mmhf.secret_kinds import find_secret


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe that is complete and valid.

    Args:
        recipe: the validated values.
        name: what the recipe is called, the file's name without its ending.
        path: the file, when it came from one.
        provenance: dotted key of each value → `FILE:LINE`, `override` or `default`. A list of plain values is one
            value. Fields of `training:` that nobody gave are TrainingArguments' own defaults and are not listed.
    """

    recipe: RecipeBase
    name: str
    path: Path | None
    provenance: dict[str, str]

    def leaves(self) -> dict[str, Any]:
        """Dotted key → value, for every value of the recipe; a list of plain values is one value."""
        return {dotted(path): value for path, value in _leaves(self.recipe.model_dump(), ())}

    def to_yaml(self) -> str:
        """The resolved recipe, defaults included, as YAML that reruns it."""
        return dump_yaml(self.recipe.model_dump())


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """Read, merge and validate a recipe file.

    Args:
        path: the YAML file, or the name of a recipe that comes with mmhf, such as `quickstart/fusion`.
        overrides: `a.b=1`, `stages.0.epochs=2`, `a={x: 1}` or `~a.b`; an override always wins over files, a later
            one over an earlier one.

    Raises:
        InputError: for anything that is wrong, all problems of the recipe at once, one a line, each with file, line,
            key, value and the nearest valid name.
    """
    parsed = [parse_override(override) for override in overrides]
    path = find_recipe(expand_path(str(path)))
    tree = _overridden(read_recipe(path, _root_of), parsed)
    return _resolve(tree, name=Path(path).stem, path=Path(path))


def recipe_from_dict(values: dict[str, Any], *, name: str, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """Validate a recipe that was written in Python.

    Args:
        values: the recipe's mapping, of plain values only; `extends` may name a file or a recipe that comes with mmhf.
        name: what the recipe is called, here and in messages.
        overrides: as `load_recipe` takes them.

    Raises:
        InputError: as `load_recipe`, with `name` in place of file and line.
    """
    parsed = [parse_override(override) for override in overrides]
    written = _extended(_node(values, Origin(name)), name, (), _root_of)
    return _resolve(_overridden(written, parsed), name=name, path=None)


def recipe_values(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a recipe by file, name or mapping, with what it extends and with overrides, but not validated.

    Raises:
        InputError: for a file that is missing or no YAML, and for overrides that do not fit.
    """
    parsed = [parse_override(override) for override in overrides]
    if isinstance(recipe, Mapping):
        written = _extended(_node(dict(recipe), Origin("recipe")), "recipe", (), _root_of)
    else:
        written = read_recipe(find_recipe(expand_path(str(recipe))), _root_of)
    values: dict[str, Any] = _overridden(written, parsed).plain()
    return values


def _overridden(written: Node, overrides: Sequence[Override]) -> Node:
    tree = apply_overrides(written, overrides, _root_of(written.plain()))
    values = tree.plain()
    return drop_replaced(tree, written.plain(), values, _root_of(values))


def _resolve(tree: Node, *, name: str, path: Path | None) -> ResolvedRecipe:
    tree, unexpanded = _expanded(without_unset_fields(tree), ())
    values = tree.plain()
    secrets = {problem.path: problem for problem in _secrets(tree, ())}
    recipe_class = _root_of(values)
    if recipe_class is None:
        problems = tag_problems(functools.reduce(operator.or_, RECIPE_BY_TASK.values()), (), values)
        raise as_input_error(_without_secrets(problems, secrets), tree)
    elsewhere = [*((name, f"training.{name}") for name in training_fields()), *key_paths(recipe_class)]
    recipe, problems = check_section(recipe_class, values, elsewhere)
    problems = unexpanded or problems
    if isinstance(values.get("training"), dict):
        problems += training_problems(values["training"], elsewhere)
    if recipe is not None and not problems and not secrets:
        problems = combination_problems(recipe)
    problems = _without_secrets(problems, secrets)
    if recipe is None or problems:
        raise as_input_error(problems, tree)
    provenance = {dotted(leaf): _provenance(tree, leaf) for leaf, _ in _leaves(recipe.model_dump(), ())}
    return ResolvedRecipe(recipe, name, path, provenance)


_NO_PATHS = (("release", "card"), ("data", "missing"), ("data", "filters"))
"""Sentences, and what stands in tables."""


def _expanded(node: Node, path: KeyPath) -> tuple[Node, list[Problem]]:
    """The recipe with home folders and environment variables filled in, and a problem for each that cannot be."""
    problems: list[Problem] = []
    value = node.value
    if isinstance(value, dict | list) and path not in _NO_PATHS:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        children = {}
        for key, child in items:
            children[key], more = _expanded(child, (*path, key))
            problems += more
        value = children if isinstance(value, dict) else list(children.values())
    elif isinstance(value, str):
        try:
            value = expand_path(value)
        except InputError as error:
            problems.append(Problem(path, str(error), shown(value)))
    return Node(value, node.origin), problems


_NO_SECRETS = (
    "leave them out, because recipes are published; give them by environment variables, or by the files that the "
    "service's own tools write (docs/cloud.md)"
)
_SECRET_KEY = re.compile(
    r"(?i)(?:\w+[_-])?(?:password|passwd|api_?key|secret|secret_?key|access_?key|access_?token|auth_?token)"
)


def _secrets(node: Node, path: KeyPath) -> Iterator[Problem]:
    """Values that are, or hold, a password, token or key."""
    if isinstance(node.value, dict | list):
        parts = node.value.items() if isinstance(node.value, dict) else enumerate(node.value)
        for part, child in parts:
            yield from _secrets(child, (*path, part))
    elif isinstance(node.value, str):
        by_name = "by its name" if path and node.value and _SECRET_KEY.fullmatch(str(path[-1])) else None
        if kind := find_secret(node.value) or by_name:
            what = f"holds a secret ({kind})"
            if kind.endswith("in a URL"):
                what = f"the {node.value.partition('://')[0]}:// URL holds credentials"
            yield Problem(path, f"{what}; {_NO_SECRETS}", is_secret=True)


def _without_secrets(problems: Sequence[Problem], secrets: dict[KeyPath, Problem]) -> list[Problem]:
    """These problems with secret values hidden, and one for each secret that has no other problem."""
    named = {each.path for each in problems}
    shown_parts = {path[:length] for path in secrets for length in range(len(path) + 1)}
    hidden = [replace(each, got=None, is_secret=True) if each.path in shown_parts else each for each in problems]
    return [*hidden, *(problem for path, problem in secrets.items() if path not in named)]


def _root_of(values: object) -> type[RecipeBase] | None:
    task = values.get("task") if isinstance(values, dict) else None
    return RECIPE_BY_TASK.get(task) if isinstance(task, str) else None


def _node(value: object, origin: Origin, path: KeyPath = ()) -> Node:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise as_input_error([Problem((*path, str(key)), "a key must be text", shown(key))], Node({}, origin))
        return Node({key: _node(child, origin, (*path, key)) for key, child in value.items()}, origin)
    if isinstance(value, list | tuple):
        return Node([_node(child, origin, (*path, index)) for index, child in enumerate(value)], origin)
    return Node(value, origin)


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, (*path, key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, child in enumerate(value):
            yield from _leaves(child, (*path, index))
    else:
        yield path, value


def _provenance(tree: Node, path: KeyPath) -> str:
    node = tree.find(path)
    if node is None:
        return "default"
    overridden = next((part.origin for part in node.walk() if part.origin.overridden), node.origin)
    return overridden.provenance


def read_recipe(path: str, root_of: Callable[[object], Annotation]) -> Node:
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


def drop_replaced(tree: Node, before: object, after: object, root: Annotation) -> Node:
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
        children = {
            key: child
            for key, child in children.items()
            if key in names or any(node.origin.overridden for node in child.walk())
        }
    return Node(
        {
            key: drop_replaced(child, before.get(key), after.get(key), annotation_at(root, (key,), after))
            for key, child in children.items()
        },
        tree.origin,
    )


def _read(path: str, extended_by: tuple[str, ...], root_of: Callable[[object], Annotation]) -> Node:
    if not os.path.isfile(path):
        raise InputError(missing_recipe(path))
    tree = load_yaml(Path(path), path)
    if tree.value is None:
        raise InputError(f"{path}: the recipe is empty, it needs at least `task` and `data`")
    if not isinstance(tree.value, dict):
        raise InputError(f"{tree.origin.place}: a recipe must be a mapping; got {shown(tree.plain())}")
    return _extended(tree, path, extended_by, root_of)


def _extended(tree: Node, path: str, extended_by: tuple[str, ...], root_of: Callable[[object], Annotation]) -> Node:
    """A recipe laid over what it extends."""
    extends = tree.value.get("extends")
    if extends is None:
        return tree
    own = Node({key: child for key, child in tree.value.items() if key != "extends"}, tree.origin)
    base = _read_base(path, extends, (*extended_by, path), root_of)
    merged = merge(base, own).plain()
    return merge(drop_replaced(base, base.plain(), merged, root_of(merged)), own)


def _read_base(path: str, extends: Node, chain: tuple[str, ...], root_of: Callable[[object], Annotation]) -> Node:
    place = f"{extends.origin.place}: extends"
    if not isinstance(extends.value, str) or not extends.value:
        raise InputError(f"{place}: must be the path of a recipe; got {shown(extends.plain())}")
    try:
        named = expand_path(extends.value)
    except InputError as error:
        raise InputError(f"{place}: {error}; got {shown(extends.value)}") from error
    base = os.path.normpath(os.path.join(os.path.dirname(path), named))
    base = base if os.path.isfile(base) else find_recipe(named) if is_shipped(named) else base
    if os.path.realpath(base) in [os.path.realpath(link) for link in chain]:
        raise InputError(f"{place}: recipes extend each other in a circle: {' -> '.join((*chain, base))}")
    if not os.path.isfile(base):
        raise InputError(f"{place}: {missing_recipe(base)}")
    return _read(base, chain, root_of)
