"""The recipe of every task: importing this imports each module of the folder that is called `NAME_recipe.py`."""

from __future__ import annotations

import importlib
import pkgutil

from mmhf import recipe
from mmhf.recipe.schema import RECIPE_BY_TASK

__all__ = ["RECIPE_BY_TASK"]

for _module in pkgutil.iter_modules(recipe.__path__):
    if _module.name.endswith("_recipe"):
        importlib.import_module(f"{recipe.__name__}.{_module.name}")
