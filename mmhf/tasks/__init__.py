"""One module a task: what ties its recipe, data, model, metrics and report together."""

from __future__ import annotations

import importlib
from typing import Any

from mmhf.recipe.schema import RecipeBase
from mmhf.tasks.base import Measured, Task

AnyTask = Task[Any, Any]
"""Any task: one of the classes in this package."""


def task_of(recipe: RecipeBase) -> AnyTask:
    """The task that a recipe belongs to: of `image-captioning`, the class `ImageCaptioning` in `image_captioning.py`.

    Its module is imported here and not before, so that a run pays for the libraries of its own task alone.
    """
    words = recipe.task.split("-")
    module = importlib.import_module(f"{__name__}.{'_'.join(words)}")
    task: AnyTask = vars(module)["".join(word.capitalize() for word in words)](recipe)
    return task


__all__ = ["AnyTask", "Measured", "Task", "task_of"]
