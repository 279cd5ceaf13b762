"""One module a task: what ties its recipe, data, model, metrics and report together."""

from typing import Any

from mmhf.recipe.schema import Recipe
from mmhf.tasks.base import Measured, Task
from mmhf.tasks.contrastive import Contrastive
from mmhf.tasks.image_captioning import ImageCaptioning
from mmhf.tasks.image_classification import ImageClassification
from mmhf.tasks.image_text_classification import ImageTextClassification

AnyTask = Task[Any, Any]
"""Any task: one of the classes in this package."""

_TASKS: dict[str, type[AnyTask]] = {
    "image-text-classification": ImageTextClassification,
    "image-classification": ImageClassification,
    "image-captioning": ImageCaptioning,
    "contrastive": Contrastive,
}


def task_of(recipe: Recipe) -> AnyTask:
    """The task that a recipe belongs to."""
    return _TASKS[recipe.task](recipe)


__all__ = [
    "AnyTask",
    "Contrastive",
    "ImageCaptioning",
    "ImageClassification",
    "ImageTextClassification",
    "Measured",
    "Task",
    "task_of",
]
