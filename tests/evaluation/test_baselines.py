"""Baselines of frozen features agree with scikit-learn, and choose their settings on the validation split alone."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmhf.evaluation import baselines, linear_maps
from mmhf.evaluation.baselines import (
    CPU_SECONDS,
    STRENGTHS,
    LinearProbe,
    PairFeatures,
    Rows,
    along_strengths,
    learnt_rows,
    logistic_regression,
)
from mmhf.evaluation.linear_maps import LinearMapsSearch, Pairs, frozen_projections

NAMES = ["cat", "dog", "cow"]


def drawn_rows(count: int, *, seed: int, shares: tuple[float, ...] = (0.6, 0.3, 0.1)) -> Rows:
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), p=shares, size=count)
    centres = np.random.default_rng(7).normal(size=(len(shares), 20))
    scales = np.linspace(0.1, 30, 20)  # as uneven as an encoder's
    return Rows(((centres[labels] + 2.5 * rng.normal(size=(count, 20))) * scales).astype(np.float32), labels)


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
@pytest.mark.slow
def test_the_regression_is_scikit_learns_with_its_settings_chosen_on_the_validation_split(metric):
    train, validation, test = drawn_rows(300, seed=0), drawn_rows(150, seed=1), drawn_rows(200, seed=2)
    found = logistic_regression(train, validation, {"validation": validation, "test": test}, NAMES, metric=metric)

    def scores(labels, predictions):
        return {
            "accuracy": accuracy_score(labels, predictions),
            "f1_macro": f1_score(labels, predictions, average="macro"),
        }

    tried = []
    for class_weight in (None, "balanced"):
        for strength in STRENGTHS:
            own = make_pipeline(
                StandardScaler(), LogisticRegression(C=strength, class_weight=class_weight, max_iter=5000, tol=1e-6)
            )
            own.fit(train.features.astype(np.float64), train.labels)
            tried.append([scores(rows.labels, own.predict(rows.features)) for rows in (validation, test)])
    on_validation, on_test = max(tried, key=lambda each: each[0][metric])
    assert {name: found["validation"][name] for name in on_validation} == pytest.approx(on_validation)
    assert {name: found["test"][name] for name in on_test} == pytest.approx(on_test)
    assert found["test"][CPU_SECONDS] > 0
    other = Rows(test.features, np.roll(test.labels, 1))
    again = logistic_regression(train, validation, {"validation": validation, "test": other}, NAMES, metric=metric)
    assert again["validation"]["accuracy"] == found["validation"]["accuracy"]  # the test split chooses nothing


def test_the_choice_differs_from_what_the_test_split_would_choose():
    """Validation labels that are nearly noise want strong regularisation; the test split is not asked."""
    train, test = drawn_rows(60, seed=0, shares=(0.5, 0.5)), drawn_rows(400, seed=2, shares=(0.5, 0.5))
    flipped = Rows(test.features, 1 - test.labels)
    right = logistic_regression(train, test, {"test": test}, NAMES[:2])["test"]["accuracy"]
    wrong = logistic_regression(train, flipped, {"test": test}, NAMES[:2])["test"]["accuracy"]
    assert right > wrong


@pytest.mark.parametrize(("scores", "tried"), [([0.5, 0.4, 0.9], 2), ([0.5, 0.5, 0.4], 3), ([0.3, 0.4, 0.5], 3)])
def test_strengths_are_tried_until_one_is_worse_than_the_last(scores: list[float], tried: int):
    given: list[tuple[float, float | None]] = []

    def fit(strength: float, start: float | None) -> float:
        given.append((strength, start))
        return strength

    found = along_strengths(fit, lambda strength: scores[STRENGTHS.index(strength)])
    assert found == list(zip(scores, STRENGTHS, strict=True))[:tried]
    assert given == list(zip(STRENGTHS, [None, *STRENGTHS], strict=False))[:tried], "each starts from the one before"


def test_without_a_validation_split_a_part_of_the_training_rows_chooses():
    train, test = drawn_rows(300, seed=0), drawn_rows(200, seed=2)
    lonely = Rows(np.concatenate([train.features, train.features[:1]]), np.append(train.labels, 3))
    found = logistic_regression(lonely, None, {"test": test}, [*NAMES, "only one row"])
    constant = np.bincount(test.labels).max() / len(test.labels)
    assert found["test"]["accuracy"] > constant


def test_a_class_that_no_training_row_has_is_never_predicted():
    train, test = drawn_rows(200, seed=0, shares=(0.5, 0.5)), drawn_rows(100, seed=1)
    found = logistic_regression(train, None, {"test": test}, NAMES)
    assert 0 < found["test"]["accuracy"] <= 1 - (test.labels == 2).mean()
    assert logistic_regression(Rows(train.features, np.zeros(200, int)), None, {"test": test}, NAMES) == {}


def test_many_rows_are_learnt_from_in_part(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_WORK", 600)
    assert learnt_rows(5, 20, 3).tolist() == [0, 1, 2, 3, 4]
    assert learnt_rows(100, 20, 3).tolist() == np.linspace(0, 99, 10).astype(int).tolist()


def test_products_tell_whether_an_image_and_a_text_go_together():
    """Which of two signs belongs to which cannot be seen in either alone, nor in their sum."""
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(1200, 6)), rng.normal(size=(1200, 5))
    labels = (images[:, 0] * texts[:, 0] > 0).astype(np.int64)
    split = {"train": slice(0, 600), "validation": slice(600, 800), "test": slice(800, 1200)}
    pairs = PairFeatures(images[split["train"]], texts[split["train"]])

    def accuracy(make):
        rows = {name: Rows(make(images[part], texts[part]), labels[part]) for name, part in split.items()}
        return logistic_regression(rows["train"], rows["validation"], {"test": rows["test"]}, ["no", "yes"])["test"][
            "accuracy"
        ]

    assert accuracy(lambda image, text: np.concatenate([image, text], axis=1)) < 0.6
    assert accuracy(pairs) > 0.85
    made = pairs(images, texts)
    assert made.shape == (1200, 5 + 6 + 5 * 6)
    own = [PCA(whiten=True).fit(each[split["train"]]).transform(each) for each in (images, texts)]
    for place, each in ((np.arange(1, 6), own[1]), (np.arange(1, 7) * 6, own[0])):  # the largest last, of any sign
        np.testing.assert_allclose(np.abs(made[:, place - 1]), np.abs(each[:, ::-1]), rtol=2e-3, atol=1e-5)


def drawn_pairs(num_images: int, *, seed: int) -> Pairs:
    """Images with one to three captions each; four directions are shared, with much noise beside them."""
    rng = np.random.default_rng(seed)
    maps = np.random.default_rng(9)
    of_images, of_texts = maps.normal(size=(4, 30)), maps.normal(size=(4, 12))
    shared = rng.normal(size=(num_images, 4))
    owners = np.repeat(np.arange(num_images), rng.integers(1, 4, size=num_images))
    images = shared @ of_images + 0.3 * rng.normal(size=(num_images, 30))
    texts = shared[owners] @ of_texts + 0.3 * rng.normal(size=(len(owners), 12))
    return Pairs(images + 5, texts - 3, owners)


@pytest.mark.parametrize("with_validation", [True, False])
def test_linear_maps_of_frozen_features_find_what_belongs_together(with_validation):
    validation = drawn_pairs(80, seed=1) if with_validation else None
    test = drawn_pairs(60, seed=2)
    search = LinearMapsSearch(drawn_pairs(300, seed=0), validation)
    found = frozen_projections(search, {"test": test})["test"]
    assert found["mean_recall"] > 0.9 and found[CPU_SECONDS] > 0
    shuffled = test._replace(owners=np.random.default_rng(0).permutation(test.owners))
    assert frozen_projections(search, {"test": shuffled})["test"]["mean_recall"] < 0.4


def test_fp32_finds_the_maps_that_fp64_finds():
    pairs, validation = drawn_pairs(300, seed=0), drawn_pairs(80, seed=1)
    narrow = [Pairs(each.images.astype("f4"), each.texts.astype("f4"), each.owners) for each in (pairs, validation)]
    wide, found = LinearMapsSearch(pairs, validation).best(), LinearMapsSearch(*narrow).best()
    assert found.images.dtype == np.float32 and found.images.shape == wide.images.shape
    for own, other in ((found.images, wide.images), (found.texts, wide.texts)):
        np.testing.assert_allclose(own @ own.T, other @ other.T, atol=1e-3 * np.abs(other @ other.T).max())


def test_a_search_knows_its_features_and_gives_no_more_directions_than_asked():
    pairs, validation = drawn_pairs(300, seed=0), drawn_pairs(80, seed=1)
    search = LinearMapsSearch(pairs, validation, dims=(3, 8, 64))
    assert search.best(3).images.shape == (30, 3) and search.best(8).images.shape[1] in (3, 8)
    assert search.best().texts.shape[1] in (3, 8, 12), "of 64 there are 12"
    same = Pairs(pairs.images.copy(), pairs.texts.copy(), pairs.owners.copy())
    assert search.is_of(same, validation) and not search.is_of(same, None)
    same.images[7, 3] += 1e-9
    assert not search.is_of(same, validation)


def test_the_maps_are_those_of_canonical_correlation_analysis():
    pairs = drawn_pairs(200, seed=0)
    one_each = Pairs(pairs.images, pairs.texts[np.searchsorted(pairs.owners, np.arange(200))], np.arange(200))
    images, texts = linear_maps._canonical_maps(linear_maps._Moments.of(one_each), 1e-9)
    projected = (one_each.images @ images[:, :3], one_each.texts @ texts[:, :3])
    reference = CCA(n_components=3, scale=False, max_iter=5000, tol=1e-12).fit(one_each.images, one_each.texts)
    expected = reference.transform(one_each.images, one_each.texts)
    for own, others in zip(projected, expected, strict=True):
        assert [abs(np.corrcoef(own[:, at], others[:, at])[0, 1]) for at in range(3)] == pytest.approx(
            [1] * 3, abs=1e-4
        )


@pytest.mark.parametrize("shares", [(0.6, 0.4), (0.6, 0.3, 0.1)])
def test_what_a_probe_is_sure_of_still_has_logits(shares):
    rows = drawn_rows(200, seed=0, shares=shares)
    far = 1e4 * rows.features
    assert np.exp(LinearProbe(rows, strength=0.1).logits(far, 3)).min() == 0, "too improbable for any number"
    assert np.isfinite(LinearProbe(rows, strength=0.1).logits(far, 3)).all()


@pytest.mark.parametrize("shares", [(0.6, 0.4), (0.6, 0.3, 0.1)])
def test_a_probe_as_a_linear_layer_gives_the_same_probabilities(shares):
    """Two classes, which scikit-learn tells apart by one row, and three; a class without rows is improbable."""
    rows = drawn_rows(200, seed=0, shares=shares)
    probe = LinearProbe(rows, strength=0.1, weights={label: 1.0 + label for label in range(4)})
    weight, bias = probe.linear(4, below=10.0)
    logits = rows.features @ weight.T + bias
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    found /= found.sum(axis=1, keepdims=True)
    seen = len(shares)
    own = found[:, :seen] / found[:, :seen].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(own, np.exp(probe.logits(rows.features, 4))[:, :seen], atol=1e-5)
    assert (weight[seen:] == 0).all() and (bias[seen:] == bias[:seen].min() - 10).all()
    weighted = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8)
    scale = StandardScaler().fit(rows.features)
    weighted.fit(scale.transform(rows.features), rows.labels, sample_weight=1.0 + rows.labels)
    np.testing.assert_allclose(own, weighted.predict_proba(scale.transform(rows.features)), atol=5e-3)
