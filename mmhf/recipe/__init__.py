"""Recipes: the schema of what users write, YAML and overrides, validation with file, line and nearest key."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmhf.recipe.editor_schema import json_schema as json_schema
    from mmhf.recipe.resolve import ResolvedRecipe as ResolvedRecipe
    from mmhf.recipe.resolve import load_recipe as load_recipe
    from mmhf.recipe.resolve import recipe_from_dict as recipe_from_dict

__all__ = ["ResolvedRecipe", "json_schema", "load_recipe", "recipe_from_dict"]

# Resolved on first use: a recipe can be found by name without its schema.
_EXPORTS = {
    "ResolvedRecipe": "mmhf.recipe.resolve",
    "json_schema": "mmhf.recipe.editor_schema",
    "load_recipe": "mmhf.recipe.resolve",
    "recipe_from_dict": "mmhf.recipe.resolve",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
