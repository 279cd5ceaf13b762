"""The JSON Schema that editors complete from, and what the source says of each key."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
from typing import Any

from pydantic.json_schema import models_json_schema

from mmhf.recipe.by_task import RECIPE_BY_TASK
from mmhf.recipe.schema_tree import is_section
from mmhf.recipe.sections import Section
from mmhf.recipe.training_arguments import training_json_schema

_EXTENDS = {
    "type": "string",
    "description": "The recipe that this one changes: a path relative to this file, or a name of `mmhf init --list`.",
}


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the recipes of all tasks, with the fields of TrainingArguments.

    It accepts every valid recipe file and refuses unknown keys and wrong types. What a recipe must have is left to
    `load_recipe`: with `extends`, or before overrides, a file need not be complete.
    """
    recipes = list(RECIPE_BY_TASK.values())
    unfinished: list[type[Section]] = [Section]
    while unfinished:  # pydantic before 2.14 does not finish the deferred ones whose defaults it writes down
        section = unfinished.pop()
        section.model_rebuild()
        unfinished += section.__subclasses__()
    references, schema = models_json_schema([(recipe, "validation") for recipe in recipes])
    definitions = {name: _lenient(definition) for name, definition in schema["$defs"].items()}
    _describe(definitions)
    for recipe in recipes:
        properties = definitions[recipe.__name__]["properties"]
        properties["training"] = {"$ref": "#/$defs/TrainingArguments"}
        properties["extends"] = _EXTENDS
    definitions["TrainingArguments"] = training_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mmhf recipe",
        "anyOf": [references[recipe, "validation"] for recipe in recipes],
        "$defs": definitions,
    }


def field_descriptions(section: type[Section]) -> dict[str, str]:
    """What the source says below each field of a section, those that it inherits included."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if is_section(base):
            found.update(_descriptions_in(base.__module__).get(base.__name__, {}))
    return found


@functools.cache
def _descriptions_in(module: str) -> dict[str, dict[str, str]]:
    """Class → field → the text below it. pydantic would read each class's source when it is made, which takes time."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    found: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = found[node.name] = {}
        for field, below in itertools.pairwise(node.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                texts[field.target.id] = inspect.cleandoc(ast.literal_eval(below.value))
    return found


def _describe(definitions: dict[str, Any]) -> None:
    waiting: list[type[Section]] = list(Section.__subclasses__())
    while waiting:
        section = waiting.pop()
        waiting += section.__subclasses__()
        properties = definitions.get(section.__name__, {}).get("properties", {})
        for name, description in field_descriptions(section).items():
            if name in properties:
                properties[name]["description"] = description


def _lenient(schema: Any) -> Any:
    """Without `required`, which makes several of `oneOf` fit a partial section: hence `anyOf`."""
    if isinstance(schema, list):
        return [_lenient(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in ("required", "discriminator")}
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    return {key: _lenient(value) for key, value in kept.items()}
