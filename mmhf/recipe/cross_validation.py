"""Which recipes can be cross-validated, and the recipe of each fold."""

from __future__ import annotations

from mmhf.errors import InputError
from mmhf.recipe.schema import RecipeBase


def check_folds(recipe: RecipeBase, num_folds: int) -> None:
    """Refuse what makes no sense for several runs that are measured together.

    Args:
        recipe (`RecipeBase`): The validated recipe.
        num_folds (`int`): How many folds.

    Raises:
        InputError: There are fewer than two, or the recipe is for one run.
    """
    if num_folds < 2:
        raise InputError(f"--folds {num_folds}: a cross-validation has 2 folds or more")
    runs = f"--folds trains {num_folds} models"
    if recipe.release is not None:
        raise InputError(
            f"release: {runs} that measure the recipe, and none of them is the one to release; add ~release here, and "
            "train without --folds for a release (data.split.validation=0 trains on all rows but those of test)"
        )
    if recipe.training.get("push_to_hub"):
        raise InputError(f"training.push_to_hub: {runs}, and none of them is the one to push; set it to false")
    if recipe.training.get("resume_from_checkpoint") is not None:
        raise InputError(f"training.resume_from_checkpoint: {runs}, and the checkpoint is of one; remove it")
    if recipe.data.is_stream():
        raise InputError(
            f"data.source: {recipe.data.source} is read as a stream, which is not cut into folds; a data set of the "
            "Hub is read beforehand with data.streaming=false"
        )
    if recipe.data.prepared is not None:
        raise InputError("data.prepared: its rows are split already, and folds are cut from the source; remove it")
    if recipe.data.fold is not None:
        raise InputError("data.fold: names one fold, and --folds trains each of them; remove one of the two")
    if "validation" not in recipe.evaluation.splits:
        raise InputError("evaluation.splits: a fold is measured on its validation split; add validation")


def fold_override(number: int, num_folds: int) -> str:
    """The override that makes a recipe that of one fold, counted from 1."""
    return f"data.fold={{number: {number}, of: {num_folds}}}"
