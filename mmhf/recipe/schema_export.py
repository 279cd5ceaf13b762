"""The JSON Schema that editors complete recipes from."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from mmhf.recipe.schema import RECIPE_BY_TASK
from mmhf.recipe.training_arguments import training_json_schema

_EXTENDS = {"type": "string", "description": "Another recipe, relative to this file, that this one changes."}


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the recipes of all tasks, with the fields of TrainingArguments.

    It accepts every valid recipe file and refuses unknown keys and wrong types. What a recipe must have is left to
    `load_recipe`: with `extends`, or before overrides, a file need not be complete.
    """
    recipes = list(RECIPE_BY_TASK.values())
    references, schema = models_json_schema([(recipe, "validation") for recipe in recipes])
    definitions = {name: _lenient(definition) for name, definition in schema["$defs"].items()}
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
