import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from mmhf.errors import InputError
from mmhf.evaluation.classification import (
    PROTOCOLS,
    classification_metrics,
    classification_table,
    confusion,
    evaluate_classification,
    most_confident_mistakes,
    softmax_in_place,
)

TOLERANCE = 1e-6


def make_predictions(num_rows, num_labels, *, seed=0, present=None):
    """Logits that are right more often than not, and labels drawn from the classes `present`."""
    random = np.random.default_rng(seed)
    labels = random.choice(present if present is not None else num_labels, size=num_rows)
    logits = random.normal(size=(num_rows, num_labels))
    logits[np.arange(num_rows), labels] += 1.0
    return logits.astype(np.float32), labels


def names(count):
    return [f"class {index}" for index in range(count)]


def assert_equals_scikit_learn(metrics, logits, labels):
    """The averages that scikit-learn defines for any labels."""
    predictions = logits.argmax(axis=1)
    assert metrics["accuracy"] == pytest.approx(reference.accuracy_score(labels, predictions), abs=TOLERANCE)
    for average in ("macro", "weighted"):
        options = {"average": average, "zero_division": 0}
        for name, function in (
            ("f1", reference.f1_score),
            ("precision", reference.precision_score),
            ("recall", reference.recall_score),
        ):
            expected = function(labels, predictions, **options)
            assert metrics[f"{name}_{average}"] == pytest.approx(expected, abs=TOLERANCE), (name, average)


def test_binary_metrics_equal_scikit_learn():
    logits, labels = make_predictions(400, 2)
    metrics = classification_metrics(logits, labels, names(2))
    positive = softmax(logits.astype(np.float64), axis=1)[:, 1]
    assert_equals_scikit_learn(metrics, logits, labels)
    assert metrics["roc_auc"] == pytest.approx(reference.roc_auc_score(labels, positive), abs=TOLERANCE)
    expected = reference.average_precision_score(labels, positive)
    assert metrics["average_precision"] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("num_labels", [3, 6, 38])
def test_multi_class_metrics_equal_scikit_learn(num_labels):
    logits, labels = make_predictions(1500, num_labels)
    metrics = classification_metrics(logits, labels, names(num_labels))
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert_equals_scikit_learn(metrics, logits, labels)
    expected = reference.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert metrics["roc_auc"] == pytest.approx(expected, abs=TOLERANCE)
    expected = reference.average_precision_score(labels, probabilities, average="macro")
    assert metrics["average_precision"] == pytest.approx(expected, abs=TOLERANCE)


def test_absent_classes_are_left_out_of_the_ranking_means():
    logits, labels = make_predictions(300, 5, present=[0, 2, 3])
    metrics = classification_metrics(logits, labels, names(5))
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert_equals_scikit_learn(metrics, logits, labels)
    per_class = [reference.roc_auc_score(labels == index, probabilities[:, index]) for index in (0, 2, 3)]
    assert metrics["roc_auc"] == pytest.approx(np.mean(per_class), abs=TOLERANCE)
    per_class = [reference.average_precision_score(labels == index, probabilities[:, index]) for index in (0, 2, 3)]
    assert metrics["average_precision"] == pytest.approx(np.mean(per_class), abs=TOLERANCE)


def test_a_class_in_neither_labels_nor_predictions_does_not_lower_the_macro_mean():
    logits = np.array([[5.0, 0.0, -9.0], [0.0, 5.0, -9.0]])
    assert classification_metrics(logits, [0, 1], names(3))["f1_macro"] == 1.0


@pytest.mark.parametrize(("only", "defined"), [(0, set()), (1, {"average_precision"})])
def test_a_binary_split_of_one_class_names_what_it_cannot_define(only, defined):
    logits, _ = make_predictions(50, 2)
    labels = np.full(50, only)
    evaluation = evaluate_classification(logits, labels, ["fake", "true"])
    assert_equals_scikit_learn(evaluation.metrics, logits, labels)
    assert {"roc_auc", "average_precision"} & set(evaluation.metrics) == defined
    assert set(evaluation.undefined) == {"roc_auc", "average_precision"} - defined
    assert repr(["fake", "true"][only]) in evaluation.undefined["roc_auc"]


def test_rows_without_a_label_change_nothing():
    logits, labels = make_predictions(60, 3)
    ignored = np.array([0, 7, 59])
    masked = labels.copy()
    masked[ignored] = -100
    dirty = logits.copy()
    dirty[ignored] = np.nan
    evaluation = evaluate_classification(dirty, masked, names(3))
    kept = np.delete(logits, ignored, axis=0), np.delete(labels, ignored)
    clean = evaluate_classification(*kept, names(3))
    assert evaluation.metrics == clean.metrics
    assert evaluation.per_class == clean.per_class
    assert (evaluation.confusion == clean.confusion).all()
    assert (evaluation.num_rows, evaluation.num_ignored) == (57, 3)


def test_one_row():
    evaluation = evaluate_classification([[0.0, 3.0, 0.0]], [1], names(3))
    assert evaluation.metrics["accuracy"] == evaluation.metrics["f1_macro"] == 1.0
    assert set(evaluation.undefined) == {"roc_auc"}


@pytest.mark.parametrize("labels", [[], [-100, -100]])
def test_no_labelled_row_defines_nothing_and_says_so(labels):
    logits = np.zeros((len(labels), 3))
    evaluation = evaluate_classification(logits, np.array(labels, dtype=int), names(3))
    assert evaluation.metrics == {}
    assert set(evaluation.undefined) == set(PROTOCOLS) - {"loss"}
    assert evaluation.num_rows == 0
    assert evaluation.confusion.shape == (3, 3)
    assert evaluation.confusion.sum() == 0
    assert [row["support"] for row in evaluation.per_class] == [0, 0, 0]


def test_every_metric_has_a_protocol_and_the_loss_stands_first():
    logits, labels = make_predictions(40, 3)
    evaluation = evaluate_classification(logits, labels, names(3), loss=0.25)
    assert list(evaluation.metrics) == list(PROTOCOLS)
    assert evaluation.metrics["loss"] == 0.25
    assert "loss" not in classification_metrics(logits, labels, names(3))


def test_large_logits_do_not_overflow():
    logits = np.array([[1e5, -1e5], [-1e5, 1e5], [1e4, 0.0]], dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = classification_metrics(logits, [0, 1, 0], names(2))
    assert metrics["roc_auc"] == 1.0


def test_half_precision_logits_are_ranked_as_they_are():
    logits, labels = make_predictions(200, 2)
    half = logits.astype(np.float16)
    assert classification_metrics(half, labels, names(2)) == classification_metrics(
        half.astype(np.float64), labels, names(2)
    )


def test_table_equals_scikit_learn_class_by_class():
    logits, labels = make_predictions(300, 4, present=[0, 1, 3])
    table = classification_table(logits, labels, ["a", "b", "absent", "d"])
    probabilities = softmax(logits.astype(np.float64), axis=1)
    expected = reference.precision_recall_fscore_support(
        labels, logits.argmax(axis=1), labels=range(4), zero_division=0
    )
    for index, row in enumerate(table):
        numbers = [row["precision"], row["recall"], row["f1"], row["support"]]
        assert numbers == pytest.approx([column[index] for column in expected], abs=TOLERANCE)
        if row["label"] == "absent":
            assert row["roc_auc"] is None
            assert row["average_precision"] is None
        else:
            of_class = labels == index, probabilities[:, index]
            assert row["roc_auc"] == pytest.approx(reference.roc_auc_score(*of_class), abs=TOLERANCE)
            assert row["average_precision"] == pytest.approx(reference.average_precision_score(*of_class))


def test_confusion_equals_scikit_learn_and_passes_over_unlabelled_rows():
    logits, labels = make_predictions(200, 4)
    predictions = logits.argmax(axis=1)
    expected = reference.confusion_matrix(labels, predictions, labels=range(4))
    assert (confusion(labels, predictions, 4) == expected).all()
    extended = confusion([*labels, -100], [*predictions, 2], 4)
    assert (extended == expected).all()


def test_diverged_logits_are_named():
    logits = np.zeros((5, 2))
    logits[3, 1] = np.nan
    logits[4, 0] = np.inf
    with pytest.raises(InputError, match="2 of 5 rows .* diverged"):
        classification_metrics(logits, [0, 1, 0, 1, 0], names(2))


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [((2, 3), [0, 1], "expected logits"), ((2, 2), [0], "expected logits"), ((2, 2), [0, 2], "label 2 is outside")],
)
def test_what_does_not_fit_the_classes_is_refused(shape, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(np.zeros(shape), labels, names(2))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_labels=st.integers(1, 5), num_rows=st.integers(0, 25))
@pytest.mark.slow
def test_any_predictions_give_finite_numbers_equal_to_scikit_learn(data, num_labels, num_rows):
    label = st.integers(0, num_labels - 1) | st.just(-100)
    labels = np.array(data.draw(st.lists(label, min_size=num_rows, max_size=num_rows)), dtype=int)
    score = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 30.0])
    row = st.lists(score, min_size=num_labels, max_size=num_labels)
    logits = np.array(data.draw(st.lists(row, min_size=num_rows, max_size=num_rows))).reshape(num_rows, num_labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = evaluate_classification(logits, labels, names(num_labels))
    kept = labels != -100
    assert set(evaluation.metrics) | set(evaluation.undefined) == set(PROTOCOLS) - {"loss"}
    assert not set(evaluation.metrics) & set(evaluation.undefined)
    assert all(0.0 <= value <= 1.0 for value in evaluation.metrics.values())
    assert evaluation.confusion.sum() == kept.sum()
    if kept.any():
        assert_equals_scikit_learn(evaluation.metrics, logits[kept], labels[kept])
        assert evaluation.metrics["accuracy"] == pytest.approx(np.trace(evaluation.confusion) / kept.sum())


def test_the_surest_mistakes_come_first_with_their_row_in_the_split():
    logits = np.array([[9.0, 0.0], [0.0, 1.0], [0.0, 8.0], [3.0, 0.0], [0.0, 5.0]])
    labels = [-100, 0, 0, 0, 0]
    mistakes = most_confident_mistakes(logits, labels, 2)
    assert [(each.index, each.label, each.prediction) for each in mistakes] == [(2, 0, 1), (4, 0, 1), (1, 0, 1)]
    assert mistakes[0].confidence > mistakes[1].confidence > mistakes[2].confidence
    assert mistakes[2].confidence == 1 / (1 + np.exp(-1.0))
    assert most_confident_mistakes(logits, labels, 2, count=1) == mistakes[:1]


def test_equally_sure_mistakes_keep_the_order_of_the_rows():
    mistakes = most_confident_mistakes(np.tile([0.0, 2.0], (30, 1)), np.zeros(30, dtype=int), 2)
    assert [each.index for each in mistakes] == list(range(24))


def test_no_labelled_row_and_no_mistake_give_none():
    assert most_confident_mistakes(np.zeros((2, 2)), [-100, -100], 2) == []
    assert most_confident_mistakes(np.zeros((0, 2)), np.zeros(0, dtype=int), 2) == []
    assert most_confident_mistakes([[1.0, 0.0]], [0], 2) == []


@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (500, 200)])
def test_probabilities_and_losses_in_place_are_scipys_to_the_bit(shape):
    generator = np.random.default_rng(0)
    scores, targets = generator.normal(scale=8, size=shape), generator.integers(0, shape[1], shape[0])
    expected = softmax(scores, axis=1), -log_softmax(scores, axis=1)[np.arange(shape[0]), targets]
    probabilities, losses = softmax_in_place(scores, targets)
    assert probabilities is scores
    assert np.array_equal(probabilities, expected[0]) and np.array_equal(losses, expected[1])
