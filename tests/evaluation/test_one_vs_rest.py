"""Logistic regressions of several labels a row: equal to scikit-learn's, chosen on the validation split alone."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmhf.evaluation.baselines import CPU_SECONDS, STRENGTHS, Rows
from mmhf.evaluation.one_vs_rest import OneVsRest, one_vs_rest

NAMES = ["a", "b", "c"]


def drawn_rows(count: int, seed: int) -> Rows:
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, 8)).astype(np.float32)
    weight = np.random.default_rng(5).normal(size=(8, 3))
    labels = features @ weight + 2 * random.normal(size=(count, 3)) > [0, 1, 2]
    return Rows(features * np.linspace(0.1, 30, 8), labels.astype(np.float32))


def test_they_are_scikit_learns_with_the_regularisation_that_the_validation_split_chooses():
    train, validation, test = (drawn_rows(300, seed) for seed in range(3))
    found = one_vs_rest(train, validation, {"validation": validation, "test": test}, NAMES, with_thresholds=False)
    tried = []
    for strength in STRENGTHS:
        each = LogisticRegression(C=strength, max_iter=5000, tol=1e-8)
        own = OneVsRestClassifier(make_pipeline(StandardScaler(), each)).fit(train.features, train.labels)
        scores = [own.decision_function(rows.features) for rows in (validation, test)]
        tried.append(
            [
                (average_precision_score(rows.labels, given), f1_score(rows.labels, given >= 0, average="micro"))
                for rows, given in zip((validation, test), scores, strict=True)
            ]
        )
    _, on_test = max(tried, key=lambda each: each[0][0])
    assert (found["test"]["map"], found["test"]["f1_micro"]) == pytest.approx(on_test, abs=1e-6)
    assert found["test"][CPU_SECONDS] > 0
    fitted = one_vs_rest(train, validation, {"validation": validation}, NAMES)
    assert fitted["validation"]["f1_macro"] > found["validation"]["f1_macro"], "by the thresholds that are best there"


def test_a_label_of_no_row_or_of_each_is_answered_so_and_a_start_changes_nothing():
    rows = drawn_rows(200, 0)
    labels = np.concatenate([rows.labels, np.zeros((200, 1)), np.ones((200, 1))], axis=1)
    first = OneVsRest(Rows(rows.features, labels), strength=STRENGTHS[0])
    logits = first.logits(rows.features)
    assert (logits[:, 3] < 0).all() and (logits[:, 4] > 0).all()
    alone = OneVsRest(Rows(rows.features, labels), strength=STRENGTHS[1])
    begun = OneVsRest(Rows(rows.features, labels), strength=STRENGTHS[1], start=first)
    np.testing.assert_allclose(begun.logits(rows.features), alone.logits(rows.features), atol=1e-3)


def test_without_a_validation_split_a_part_of_the_training_rows_chooses():
    train, test = drawn_rows(300, 0), drawn_rows(200, 1)
    found = one_vs_rest(train, None, {"test": test}, NAMES)["test"]
    assert found["map"] > test.labels.mean(axis=0).mean() + 0.1
