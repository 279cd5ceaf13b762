"""What is measured and reported of each kind of target: groups, modalities, calibration, and definitions."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmhf.data.loading import LoadedData
from mmhf.data.table import extra_column
from mmhf.evaluation.baselines import RIDGE_STRENGTHS, STRENGTHS
from mmhf.evaluation.modalities import evaluate_modalities, other_rows
from mmhf.evaluation.report.sections import RunFacts
from mmhf.evaluation.report.target_report import Measured, TargetReport
from mmhf.recipe import recipe_from_dict
from mmhf.tasks import task_of
from mmhf.tasks.frozen_features import FrozenFeatures, SplitFeatures
from mmhf.tasks.targets import ClassifierTarget, Predicted, classifier_target

ROWS = 120
TABLE = {"source": "table", "path": "t.csv"}
KINDS: dict[str, dict[str, Any]] = {
    "classes": {},
    "multi_label": {"multi_label": {"names": ["a", "b", "c"]}},
    "regression": {"regression": {"columns": ["a", "b", "c"]}},
    "ordinal": {"ordinal": {"order": ["a", "b", "c"]}},
}
COLUMNS = {"classes": "label", "ordinal": "label", "multi_label": "labels", "regression": "numbers"}
SEXES = [None if row % 10 == 9 else "fm"[row % 2] for row in range(ROWS)]


def target_of(kind: str, **evaluation: Any) -> ClassifierTarget[Any]:
    data = {**TABLE, **KINDS[kind]}
    values = {"task": "image-text-classification", "data": data, "evaluation": {"subgroups": ["sex"], **evaluation}}
    return classifier_target(recipe_from_dict(values, name="r").recipe)


def answers_of(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, 3) that know something of the labels, worse for every second row."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(ROWS, 3)).astype(np.float32) * (1 + np.arange(ROWS) % 2)[:, None]
    if kind == "regression":
        labels = random.normal(size=(ROWS, 3)) * [1, 10, 100]
        return labels + noise * [1, 10, 100], labels
    if kind == "multi_label":
        labels = (random.random((ROWS, 3)) < 0.4).astype(np.float32)
        return 3 * labels - 1.5 + noise, labels
    labels = random.integers(3, size=ROWS)
    return 2 * np.eye(3)[labels] + noise, labels


def measured(kind: str, target: ClassifierTarget[Any], config: Any) -> Measured[Any]:
    logits, labels = answers_of(kind)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "#c24").save(picture, "PNG")
    table = {
        "id": [str(row) for row in range(ROWS)],
        "image": [{"bytes": picture.getvalue(), "path": None}] * ROWS,
        "text": ["a text"] * ROWS,
        COLUMNS[kind]: labels.tolist(),
        extra_column("sex"): SEXES,
    }
    rows = datasets.Dataset.from_dict(table)
    data = LoadedData({"train": rows, "test": rows}, ["a", "b", "c"])
    partners = other_rows(ROWS)
    views = {"both": logits, "image_only": logits[::-1], "text_only": logits, "mismatched": logits[partners]}
    modalities = evaluate_modalities(views, labels, partners, data.label_names, comparison=target.comparison(config))
    return target.measure(Predicted(logits, labels, 0.5), config, data=data, split="test", modalities=modalities)


@pytest.mark.parametrize("kind", list(KINDS))
def test_groups_modalities_and_calibration_stand_in_the_report_with_their_meaning(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TargetReport, "plots", lambda *args: {})
    target = target_of(kind, subgroup_min_rows=20)
    found = measured(kind, target, SimpleNamespace(thresholds=None, calibration_temperature=1.5, abstain_below=None))
    metric = target.comparison(SimpleNamespace(thresholds=None)).metrics[0]
    groups = {group.value: group.num_rows for group in found.subgroups[0].groups}
    assert groups == {"f": 60, "m": 48, "(missing)": 12}
    gap = next(iter(found.subgroups[0].gaps.values()))
    assert (gap.best, gap.worst) == ("f", "m"), "the rows of which were made worse, whichever way the metric counts"
    assert gap.difference.low <= gap.difference.value <= gap.difference.high and gap.difference.value > 0
    assert found.metrics[f"text_only_{metric}"] == pytest.approx(found.metrics[metric])
    assert found.metrics[f"mismatched_text_{metric}"] == pytest.approx(found.metrics[metric]), "it goes by the text"
    assert found.metrics[f"image_only_{metric}"] != pytest.approx(found.metrics[metric])
    assert ("ece_uncalibrated" in found.metrics) == (kind != "regression")

    target.report.write(RunFacts(folder=tmp_path, title="run"), {"test": found})
    protocols = json.loads((tmp_path / "evaluation.json").read_text())["protocols"]
    names = [name.removeprefix("test_") for name in json.loads((tmp_path / "metrics.json").read_text())]
    assert not set(names) - set(protocols), "each number has its definition"
    page = (tmp_path / "report.html").read_text()
    assert "<h2>By modality: test</h2>" in page and "<h2>Subgroups: test</h2>" in page
    assert ("<h2>Calibration: test</h2>" in page) == (kind != "regression")
    assert "A shortcut: the text alone does as well as both." in page
    assert "sex,f," in (tmp_path / "subgroups.csv").read_text()


@pytest.mark.parametrize(("kind", "metrics"), [
    ("multi_label", {"f1_micro": lambda y, p: sk.f1_score(y, p, average="micro"),
                     "f1_samples": lambda y, p: sk.f1_score(y, p, average="samples", zero_division=1.0)}),
    ("regression", {"mae": sk.mean_absolute_error, "rmse": sk.root_mean_squared_error}),
    ("ordinal", {"mae": sk.mean_absolute_error, "accuracy": sk.accuracy_score}),
])  # fmt: skip
def test_groups_have_scikit_learns_numbers_of_their_rows(kind: str, metrics: dict[str, Any]):
    target = target_of(kind)
    config = SimpleNamespace(thresholds=[0.4, 0.5, 0.6], calibration_temperature=1.0, abstain_below=None)
    found = measured(kind, target, config)
    logits, labels = answers_of(kind)
    answers = logits
    if kind == "multi_label":
        answers = 1 / (1 + np.exp(-logits)) >= config.thresholds
    elif kind == "ordinal":
        answers = ((np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).cumsum(axis=1) >= 0.5).argmax(axis=1)
    for group in found.subgroups[0].groups:
        rows = [(sex or "(missing)") == group.value for sex in SEXES]
        for name, measure in metrics.items():
            assert group.metrics[name].value == pytest.approx(measure(labels[rows], answers[rows])), name
            assert group.metrics[name].low < group.metrics[name].value < group.metrics[name].high


def test_a_temperature_of_ordered_classes_is_fitted_and_kept():
    target = target_of("ordinal", calibrate=True)
    logits, labels = answers_of("ordinal")
    config = SimpleNamespace(calibration_temperature=1.0)
    target.finish(Predicted(4 * logits, labels, 0.0), config)
    steeper = config.calibration_temperature
    config.calibration_temperature = 1.0
    target.finish(Predicted(logits, labels, 0.0), config)
    assert steeper == pytest.approx(4 * config.calibration_temperature, rel=1e-4)


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_pairs_stand_beside_scikit_learn_on_the_features_of_both_encoders(kind: str):
    """And on the products of these; regularisation is chosen on the validation split."""
    random = np.random.default_rng(3)
    images, texts = (random.normal(size=(3, ROWS, 4)).astype(np.float32) for _ in range(2))
    signal = images[..., :3] + texts[..., :3] + random.normal(size=(3, ROWS, 3))
    labels = signal if kind == "regression" else (signal > 0).astype(np.float32)
    names = ("train", "validation", "test")
    recipe = recipe_from_dict({"task": "image-text-classification", "data": {**TABLE, **KINDS[kind]}}, name="r").recipe
    task = task_of(recipe)
    tables = {name: datasets.Dataset.from_dict({COLUMNS[kind]: labels[at].tolist()}) for at, name in enumerate(names)}
    splits = {name: SplitFeatures(np.arange(ROWS), images[at], texts[at]) for at, name in enumerate(names)}
    found = task.baselines(FrozenFeatures(splits), LoadedData(dict(tables), ["a", "b", "c"]))["test"]

    train, validation, test = np.concatenate([images, texts], axis=2).astype(np.float64)
    tried = []
    for strength in STRENGTHS if kind == "multi_label" else RIDGE_STRENGTHS:
        single = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
        own = OneVsRestClassifier(single) if kind == "multi_label" else Ridge(alpha=strength * ROWS)
        fitted = make_pipeline(StandardScaler(), own).fit(train, labels[0])
        answer = fitted.decision_function if kind == "multi_label" else fitted.predict
        measure = sk.average_precision_score if kind == "multi_label" else sk.r2_score
        tried.append([measure(labels[at], answer(each)) for at, each in ((1, validation), (2, test))])
    baseline, metric = ("logistic regression", "map") if kind == "multi_label" else ("ridge regression", "r2")
    assert found.keys() == {baseline, f"{baseline} on products"}
    assert found[baseline][metric] == pytest.approx(max(tried)[1], abs=5e-4)
    assert 0 < found[f"{baseline} on products"][metric] < 1
