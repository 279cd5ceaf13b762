"""One module a task: what ties its recipe, data, model, metrics and report together."""

from typing import Any

from mmhf.recipe.schema import Recipe
from mmhf.tasks.classification import ClassificationTask, MeasuredSplit
from mmhf.tasks.image_classification import ImageClassification
from mmhf.tasks.image_text_classification import ImageTextClassification

Task = ClassificationTask[Any]
"""Any task: one of the classes in this package."""

_TASKS: dict[str, type[Task]] = {
    "image-text-classification": ImageTextClassification,
    "image-classification": ImageClassification,
}


def task_of(recipe: Recipe) -> Task:
    """The task that a recipe belongs to."""
    return _TASKS[recipe.task](recipe)


__all__ = ["ImageClassification", "ImageTextClassification", "MeasuredSplit", "Task", "task_of"]
