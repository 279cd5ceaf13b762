"""One module a task: what ties its recipe, data, model, metrics and report together."""

from __future__ import annotations

import importlib
from typing import Any

from mmhf.recipe.schema import Recipe
from mmhf.tasks.base import Measured, Task

AnyTask = Task[Any, Any]
"""Any task: one of the classes in this package."""

# Imported on first use, so that a run pays for the libraries of its own task alone.
_CLASSES = {
    "image-text-classification": "ImageTextClassification",
    "image-classification": "ImageClassification",
    "image-captioning": "ImageCaptioning",
    "contrastive": "Contrastive",
}


def task_of(recipe: Recipe) -> AnyTask:
    """The task that a recipe belongs to."""
    module = importlib.import_module(f"mmhf.tasks.{recipe.task.replace('-', '_')}")
    task: AnyTask = vars(module)[_CLASSES[recipe.task]](recipe)
    return task


__all__ = ["AnyTask", "Measured", "Task", "task_of"]
