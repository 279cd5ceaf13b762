"""One module a task: what ties its recipe, data, model, metrics and report together."""

from mmhf.recipe.schema import Recipe
from mmhf.tasks.image_text_classification import ImageTextClassification, MeasuredSplit

Task = ImageTextClassification
"""Any task: the union of the classes in this package."""

_TASKS: dict[str, type[Task]] = {"image-text-classification": ImageTextClassification}


def task_of(recipe: Recipe) -> Task:
    """The task that a recipe belongs to."""
    return _TASKS[recipe.task](recipe)


__all__ = ["ImageTextClassification", "MeasuredSplit", "Task", "task_of"]
