"""From a recipe file and overrides to a validated recipe that knows where each value came from."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmhf.recipe.combinations import combination_problems
from mmhf.recipe.files import drop_replaced, read_recipe
from mmhf.recipe.node import KeyPath, Node, Origin, dotted, shown
from mmhf.recipe.overrides import apply_overrides, parse_override
from mmhf.recipe.problems import Problem, as_input_error
from mmhf.recipe.schema import RECIPE_BY_TASK, Recipe
from mmhf.recipe.schema_tree import key_paths
from mmhf.recipe.training_arguments import training_fields, training_problems, without_unset_fields
from mmhf.recipe.validation import check_section, tag_problems
from mmhf.recipe.yaml_loader import dump_yaml

_EVERY_RECIPE: Any = functools.reduce(operator.or_, RECIPE_BY_TASK.values())


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

    recipe: Recipe
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
        path: the YAML file.
        overrides: `a.b=1`, `stages.0.epochs=2`, `a={x: 1}` or `~a.b`; an override always wins over files, a later
            one over an earlier one.

    Raises:
        InputError: for anything that is wrong, all problems of the recipe at once, one a line, each with file, line,
            key, value and the nearest valid name.
    """
    parsed = [parse_override(override) for override in overrides]
    written = read_recipe(str(path), _root_of)
    tree = apply_overrides(written, parsed, _root_of(written.plain()))
    values = tree.plain()
    tree = drop_replaced(tree, written.plain(), values, _root_of(values))
    return _resolve(tree, name=Path(path).stem, path=Path(path))


def recipe_from_dict(values: dict[str, Any], *, name: str) -> ResolvedRecipe:
    """Validate a recipe that was written in Python.

    Args:
        values: the recipe's mapping, of plain values only.
        name: what the recipe is called, here and in messages.

    Raises:
        InputError: as `load_recipe`, with `name` in place of file and line.
    """
    return _resolve(_node(values, Origin(name)), name=name, path=None)


def _resolve(tree: Node, *, name: str, path: Path | None) -> ResolvedRecipe:
    tree = without_unset_fields(tree)
    values = tree.plain()
    recipe_class = _root_of(values)
    if recipe_class is None:
        raise as_input_error(tag_problems(_EVERY_RECIPE, (), values), tree)
    elsewhere = [*((name, f"training.{name}") for name in training_fields()), *key_paths(recipe_class)]
    recipe, problems = check_section(recipe_class, values, elsewhere)
    if isinstance(values.get("training"), dict):
        problems += training_problems(values["training"], elsewhere)
    if recipe is not None and not problems:
        problems = combination_problems(recipe)
    if recipe is None or problems:
        raise as_input_error(problems, tree)
    provenance = {dotted(leaf): _provenance(tree, leaf) for leaf, _ in _leaves(recipe.model_dump(), ())}
    return ResolvedRecipe(recipe, name, path, provenance)


def _root_of(values: Any) -> type[Recipe] | None:
    task = values.get("task") if isinstance(values, dict) else None
    return RECIPE_BY_TASK.get(task) if isinstance(task, str) else None


def _node(value: Any, origin: Origin, path: KeyPath = ()) -> Node:
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
