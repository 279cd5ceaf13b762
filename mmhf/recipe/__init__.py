"""Recipes: the schema of what users write, YAML and overrides, validation with file, line and nearest key."""

from __future__ import annotations

from mmhf.recipe.resolve import ResolvedRecipe, load_recipe, recipe_from_dict
from mmhf.recipe.schema_tree import json_schema

__all__ = ["ResolvedRecipe", "json_schema", "load_recipe", "recipe_from_dict"]
