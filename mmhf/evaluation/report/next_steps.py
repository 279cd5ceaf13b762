"""What a report proposes to try next, from the data, the rivals and the curves of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mmhf.evaluation.curves import series
from mmhf.evaluation.intervals import Interval
from mmhf.evaluation.report.sections import RunFacts
from mmhf.recipe.training_sections import greater_is_better

MAX_STEPS = 3
"""The first ones only, in the order of how much they matter."""
_HEAD_FIRST = (
    "A first stage that trains the head alone until it no longer improves (its features are stored, so that epochs "
    "cost little), and lower rates for what is unfrozen later: {} on the same frozen features is ahead."
)
_CATCH_UP = {
    "logistic regression": _HEAD_FIRST.format("logistic regression"),
    "logistic regression on products": "model.fusion.strategy: product_difference, and "
    + _HEAD_FIRST[2:].format("logistic regression with products of image and text"),
    "ridge regression": _HEAD_FIRST.format("ridge regression"),
    "ridge regression on products": "model.fusion.strategy: product_difference, and "
    + _HEAD_FIRST[2:].format("ridge regression with products of image and text"),
    "frozen projections": (
        "A first stage that trains the projections alone from there (start: linear_probe, with model.projection_bias: "
        "true), before the towers are unfrozen: two linear maps of the frozen features are ahead."
    ),
    "nearest neighbour": (
        "model.neighbours with votes, which looks captions up, or beside a prompt a pretrained language model "
        "(model.language.pretrained): the caption of the most similar training image is ahead."
    ),
}
"""What to try where one of these is ahead."""


def steps_to_try(
    run: RunFacts, metric: str, rivals: Mapping[str, float], result: Interval, of_results: Sequence[str] = ()
) -> list[str]:
    """What to try next, the most promising first.

    Args:
        run (`RunFacts`): Its data, curves and optimizer steps are looked at.
        metric (`str`): What is judged.
        rivals (`Mapping[str, float]`): Name → the metric of what costs nothing; may be empty.
        result (`Interval`): The metric of the model.
        of_results (`Sequence[str]`, *optional*): What the family's other numbers propose.
    """
    if not greater_is_better(metric):
        rivals = {name: -value for name, value in rivals.items()}
        result = Interval(-result.value, -result.high, -result.low)
    steps = [*_data_steps(run), *_learning_steps(run, rivals, result), *of_results, *_curve_steps(run, metric)]
    return steps[:MAX_STEPS]


def _data_steps(run: RunFacts) -> list[str]:
    steps = []
    across = sum(pair.crosses_splits for pair in run.duplicates if pair.kind != "blank")
    if across:
        pairs = "1 pair of images is" if across == 1 else f"{across:,} pairs of images are"
        steps.append(
            f"data.on_duplicate: skip_across_splits; {pairs} in two splits, and the numbers here flatter the model."
        )
    if run.trained.get("optimizer steps") == 0:
        steps.append("Train: no optimizer step was taken.")
    return steps


def _learning_steps(run: RunFacts, rivals: Mapping[str, float], result: Interval) -> list[str]:
    """What to do about a model that a rival comes near to."""
    if not rivals or result.low > max(rivals.values()):
        return []
    ahead = [_CATCH_UP[name] for name in sorted(rivals, key=lambda each: -rivals[each]) if name in _CATCH_UP]
    if ahead and result.value <= max(rivals[name] for name in _CATCH_UP if name in rivals):
        return [*ahead[:1], *_usual_steps(run, rivals, result)]
    return _usual_steps(run, rivals, result)


def _usual_steps(run: RunFacts, rivals: Mapping[str, float], result: Interval) -> list[str]:
    if run.log_history and result.low > min(rivals.values()):
        return ["Longer training, or another learning rate (mmhf find-lr): the best of the others is still ahead."]
    return [
        "Another learning rate (mmhf find-lr) and a look at the labels: so far training has not paid."
        if run.log_history
        else "Train on data like this: here the model has little advantage."
    ]


def _curve_steps(run: RunFacts, metric: str) -> list[str]:
    """What the curves of the validation split say about the length of training."""
    curve, losses = series(run.log_history, f"eval_{metric}"), series(run.log_history, "eval_loss")
    if len(curve.steps) < 3 or not np.isfinite(curve.values).any():
        return []
    best = int((np.nanargmax if greater_is_better(metric) else np.nanargmin)(curve.values))
    if best == len(curve.steps) - 1:
        return ["Longer training: the validation split was best at the last evaluation."]
    lowest = min(losses.values, default=0.0)
    if losses.steps and losses.values[-1] > 1.05 * lowest:
        return [
            "More augmentation or weight decay, or early_stopping: the validation loss has risen from "
            f"{lowest:.4f} to {losses.values[-1]:.4f}."
        ]
    return []
