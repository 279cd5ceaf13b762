"""What a recipe may say with `data.regression` and `data.ordinal`, and what it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mmhf.errors import InputError
from mmhf.recipe import recipe_from_dict
from mmhf.recipe.training_sections import greater_is_better

NUMBERS = {"source": "table", "path": "t.csv", "regression": {}}
ORDER = {"source": "table", "path": "t.csv", "ordinal": {"order": ["low", "high"]}}


def problems(values: Mapping[str, Any]) -> str:
    with pytest.raises(InputError) as raised:
        recipe_from_dict({"task": "image-classification", **values}, name="r")
    return str(raised.value)


def test_what_belongs_to_them_is_taken():
    values = {"task": "image-text-classification", "data": NUMBERS, "loss": {"huber_delta": 1}}
    recipe = recipe_from_dict(values, name="r").recipe
    assert recipe.loss.huber_delta == 1 and recipe.data.target.columns_read() is None
    data = {**ORDER, "labels": {"0": "low", "1": "high"}, "augment": {"mixup": 0.2}}
    values = {"task": "image-classification", "data": data, "loss": {"class_weights": "balanced"}}
    values["evaluation"] = {"subgroups": ["sex"], "calibrate": True}
    assert recipe_from_dict({**values, "sampling": {}}, name="r").recipe.data.target.order == ["low", "high"]


@pytest.mark.parametrize(
    ("data", "changes", "key"),
    [
        (NUMBERS, {"loss": {"class_weights": "balanced"}}, "loss.class_weights"),
        (NUMBERS, {"loss": {"label_smoothing": 0.1}}, "loss.label_smoothing"),
        (NUMBERS, {"training": {"label_smoothing_factor": 0.1}}, "training.label_smoothing_factor"),
        (NUMBERS, {"evaluation": {"calibrate": True}}, "evaluation.calibrate"),
        (NUMBERS, {"sampling": {}}, "sampling.by"),
        (NUMBERS, {"data": {**NUMBERS, "augment": {"mixup": 0.2}}}, "data.augment.mixup"),
        (NUMBERS, {"stages": [{"name": "a", "epochs": 1, "augment": {"cutmix": 0.2}}]}, "stages.0.augment.cutmix"),
        (NUMBERS, {"data": {**NUMBERS, "labels": {"a": "A", "b": "B"}}}, "data.labels"),
        (ORDER, {"loss": {"focal_gamma": 2}}, "loss.focal_gamma"),
        (ORDER, {"loss": {"huber_delta": 1}}, "loss.huber_delta"),
        (ORDER, {"loss": {"label_smoothing": 0.1}}, "loss.label_smoothing"),
        (ORDER, {"evaluation": {"target_accuracy": 0.9}}, "evaluation.target_accuracy"),
        (NUMBERS, {"evaluation": {"target_accuracy": 0.9}}, "evaluation.target_accuracy"),
        (
            ORDER,
            {
                "model": {"head": {"hidden_dim": None}},
                "stages": [{"name": "head", "epochs": 1, "train": ["head"], "start": "linear_probe"}],
            },
            "stages.0.start",
        ),
        ({"source": "hub", "path": "a/b", "streaming": True, "regression": {}}, {}, "data.streaming"),
        ({"source": "sample"}, {"loss": {"huber_delta": 1}}, "loss.huber_delta"),
        (
            {"source": "hub", "path": "a/b", "streaming": True},
            {"evaluation": {"subgroups": ["a"]}},
            "evaluation.subgroups",
        ),
    ],
)
def test_what_is_for_other_targets_is_named(data: dict[str, Any], changes: dict[str, Any], key: str):
    assert f"{key}:" in problems({"data": data, **changes})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({**NUMBERS, "ordinal": {"order": ["low", "high"]}}, "learns one of regression and ordinal"),
        ({**NUMBERS, "multi_label": {}}, "learns one of multi_label and regression"),
        ({**NUMBERS, "regression": {"columns": ["a", "a"]}}, "'a' is given twice"),
        ({**NUMBERS, "regression": {"columns": []}}, "at least 1"),
        ({**ORDER, "ordinal": {"order": ["low", "low"]}}, "'low' is given twice"),
        ({**ORDER, "ordinal": {"order": ["low"]}}, "at least 2"),
        ({**ORDER, "ordinal": {}}, "order"),
    ],
)
def test_contradictions(data: dict[str, Any], says: str):
    assert says in problems({"data": data})


def test_errors_are_better_when_smaller():
    assert not greater_is_better("eval_mae") and not greater_is_better("rmse")
    assert greater_is_better("eval_r2") and greater_is_better("kappa_quadratic")
