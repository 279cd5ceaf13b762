from __future__ import annotations

import json

import numpy as np
import pytest

from mmhf.evaluation.cross_validation import summarise_folds, write_cross_validation

FOLDS = [{"validation_accuracy": 0.5, "test_r2": None}, {"validation_accuracy": 0.8, "test_r2": 0.1}]


def test_means_and_deviations_are_those_of_numpy():
    accuracy = summarise_folds(FOLDS)["validation_accuracy"]
    assert accuracy.mean == pytest.approx(np.mean([0.5, 0.8]))
    assert accuracy.deviation == pytest.approx(np.std([0.5, 0.8], ddof=1))
    assert str(accuracy) == "0.6500 ± 0.2121"


def test_a_number_that_one_fold_lacks_has_no_mean():
    assert summarise_folds(FOLDS)["test_r2"].mean is None
    assert str(summarise_folds([*FOLDS, {}])["validation_accuracy"]) == "undefined"


def test_files_hold_numbers_definitions_and_baselines(tmp_path):
    baselines = [{"validation": {"ridge": {"accuracy": value, "cpu_seconds": 1.0}}} for value in (0.2, 0.4)]
    write_cross_validation(
        tmp_path,
        summarise_folds(FOLDS),
        title="plants",
        notes=["A note."],
        protocols={"accuracy": "share of rows that are right"},
        baselines=baselines,
        recipe_yaml="task: image-classification",
    )
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers == pytest.approx(
        {"validation_accuracy": 0.65, "validation_accuracy_std": 0.212132, "test_r2": None, "test_r2_std": None},
        abs=1e-6,
    )
    page = (tmp_path / "report.html").read_text()
    for said in ("plants", "A note.", "share of rows that are right", "0.6500 ± 0.2121", "0.3000 ± 0.1414", "ridge"):
        assert said in page, said
    assert (tmp_path / "folds.csv").read_text().splitlines()[0] == "metric,mean,std,fold 1,fold 2"
