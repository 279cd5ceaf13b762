"""What a recipe may say with `data.multi_label`, and what it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mmhf.errors import InputError
from mmhf.recipe import recipe_from_dict

SETS = {"source": "table", "path": "t.csv", "multi_label": {"separator": ","}}


def problems(values: Mapping[str, Any]) -> str:
    with pytest.raises(InputError) as raised:
        recipe_from_dict({"task": "image-classification", **values}, name="r")
    return str(raised.value)


def test_what_belongs_to_it_is_taken():
    recipe = recipe_from_dict(
        {
            "task": "image-text-classification",
            "data": SETS,
            "loss": {"asymmetric": {"gamma_negative": 2}, "class_weights": "balanced", "label_smoothing": 0.1},
            "evaluation": {"fit_thresholds": True, "calibrate": True, "subgroups": ["sex"], "by_modality": True},
        },
        name="r",
    ).recipe
    assert recipe.data.target.separator == ","
    assert recipe.loss.asymmetric.model_dump() == {"gamma_positive": 1.0, "gamma_negative": 2, "margin": 0.05}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"loss": {"logit_adjustment": 1.0}}, "loss.logit_adjustment"),
        ({"loss": {"focal_gamma": 2.0, "asymmetric": {}}}, "loss.focal_gamma"),
        ({"evaluation": {"target_accuracy": 0.9}}, "evaluation.target_accuracy"),
        ({"sampling": {"power": 0.5}}, "sampling.by"),
        (
            {
                "model": {"head": {"hidden_dim": None}},
                "stages": [{"name": "head", "epochs": 1, "train": ["head"], "start": "linear_probe"}],
            },
            "stages.0.start",
        ),
        ({"data": {**SETS, "labels": {"a": "A", "b": "B"}}}, "data.labels"),
        ({"data": {**SETS, "filters": {"min_samples_per_label": 3}}}, "data.filters.min_samples_per_label"),
        ({"data": {"source": "hub", "path": "a/b", "streaming": True, "multi_label": {}}}, "data.streaming"),
    ],
)
def test_what_asks_for_one_class_a_row_is_named(changes: dict[str, Any], key: str):
    assert f"{key}:" in problems({"data": SETS, **changes})


def test_abstaining_by_accuracy_is_refused_with_a_way_out():
    said = problems({"data": SETS, "evaluation": {"target_accuracy": 0.9}})
    assert "saying no throughout is nearly always right" in said and "mmhf predict --threshold 0.9" in said


@pytest.mark.parametrize("section", [{"loss": {"asymmetric": {}}}, {"evaluation": {"fit_thresholds": False}}])
def test_what_is_for_several_labels_alone_is_named(section: dict[str, Any]):
    ((name, values),) = section.items()
    said = problems({"data": {"source": "sample"}, **section})
    assert f"{name}.{next(iter(values))}:" in said
    assert "set `data.multi_label`, or remove it" in said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"columns": ["a", "b"], "separator": ","}, "nothing to separate"),
        ({"columns": ["a", "b"], "names": ["a", "b"]}, "`columns` name the labels already"),
        ({"names": ["a", "b", "a"]}, "'a' is given twice"),
        ({"others": "ignore"}, "needs `names`"),
        ({"separator": ""}, "separator: is empty"),
        ({"names": ["a"]}, "at least 2"),
        ({"empty": "nothing"}, "none"),
    ],
)
def test_contradictions(given: dict[str, Any], says: str):
    assert says in problems({"data": {**SETS, "multi_label": given}})


def test_sources_of_one_class_do_not_know_it():
    said = problems({"data": {"source": "image_folder", "path": "x", "multi_label": {}}})
    assert "data.multi_label: unknown key" in said
