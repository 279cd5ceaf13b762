from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from mmhf.evaluation.subgroups import MISSING, class_outcomes, evaluate_subgroups


@pytest.fixture
def split() -> tuple[np.ndarray, np.ndarray, list[str | None]]:
    """Predictions that are right for 95 % of the rows of `light` and 70 % of those of `dark`."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 600)
    skin = ["light"] * 300 + ["dark"] * 200 + ["blue"] * 5 + [None] * 95
    right = rng.random(600) < np.array([0.95] * 300 + [0.7] * 200 + [0.0] * 100)
    predictions = np.where(right, labels, (labels + 1) % 3)
    return np.eye(3)[predictions], labels, skin


def test_groups_have_the_metrics_of_their_rows(split):
    logits, labels, skin = split
    (column,) = evaluate_subgroups(class_outcomes(logits, labels, 3), {"skin": skin})
    assert [(group.value, group.num_rows) for group in column.groups] == [
        ("light", 300), ("dark", 200), (MISSING, 95), ("blue", 5),
    ]  # fmt: skip
    for group in column.groups:
        rows = np.array([(MISSING if value is None else value) == group.value for value in skin])
        predictions = logits[rows].argmax(axis=1)
        assert group.metrics["accuracy"].value == pytest.approx(accuracy_score(labels[rows], predictions))
        expected = f1_score(labels[rows], predictions, average="macro", zero_division=0)
        assert group.metrics["f1_macro"].value == pytest.approx(expected)


@pytest.mark.slow
def test_intervals_are_those_of_resampled_rows(split):
    logits, labels, skin = split
    (column,) = evaluate_subgroups(class_outcomes(logits, labels, 3), {"skin": skin})
    rows = np.flatnonzero(np.array(skin) == "dark")
    rng = np.random.default_rng(5)
    drawn = rng.choice(rows, (3000, len(rows)))
    predictions = logits.argmax(axis=1)
    scores = [f1_score(labels[each], predictions[each], average="macro") for each in drawn[:400]]
    (dark,) = (group for group in column.groups if group.value == "dark")
    low, high = np.percentile(scores, [2.5, 97.5])
    assert (dark.metrics["f1_macro"].low, dark.metrics["f1_macro"].high) == pytest.approx((low, high), abs=0.015)
    accuracies = (labels[drawn] == predictions[drawn]).mean(axis=1)
    low, high = np.percentile(accuracies, [2.5, 97.5])
    assert (dark.metrics["accuracy"].low, dark.metrics["accuracy"].high) == pytest.approx((low, high), abs=0.012)


def test_the_gap_is_between_groups_with_enough_rows(split):
    logits, labels, skin = split
    (column,) = evaluate_subgroups(class_outcomes(logits, labels, 3), {"skin": skin}, min_rows=10)
    gap = column.gaps["accuracy"]
    assert (gap.best, gap.worst) == ("light", "dark"), "neither five rows nor missing values are compared"
    right = logits.argmax(axis=1) == labels
    assert gap.difference.value == pytest.approx(right[:300].mean() - right[300:500].mean())
    assert gap.worst_value == pytest.approx(right[300:500].mean())
    assert 0.1 < gap.difference.low < gap.difference.value < gap.difference.high < 0.5
    flat = column.flat()
    assert flat["skin_accuracy_gap"] == gap.difference.value and flat["skin_accuracy_worst"] == gap.worst_value
    (column,) = evaluate_subgroups(class_outcomes(logits, labels, 3), {"skin": skin}, min_rows=250)
    assert column.gaps == {} and column.flat() == {}


def test_rows_without_a_label_are_in_no_group(split):
    logits, labels, skin = split
    labels = np.where(np.array(skin) == "blue", -100, labels)
    (column,) = evaluate_subgroups(class_outcomes(logits, labels, 3), {"skin": skin})
    assert "blue" not in {group.value for group in column.groups}
