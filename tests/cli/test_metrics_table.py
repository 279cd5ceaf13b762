"""What is printed of an evaluation: its numbers, and beside them those that need no training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmhf.evaluation.classification import evaluate_classification
from mmhf.evaluation.report.target_report import Measured
from mmhf.verbs._metrics_table import print_metrics


def undefined_numbers(run: Path) -> set[str]:
    """Those of a run's metrics that `evaluation.json`, which model cards are made from, does not define."""
    names = {name.partition("_")[2] for name in json.loads((run / "metrics.json").read_text())}
    return names - json.loads((run / "evaluation.json").read_text())["protocols"].keys()


def test_every_number_is_defined(trained: Path) -> None:
    assert not undefined_numbers(trained / "run")


def test_baselines_stand_below_the_metrics(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    evaluation = evaluate_classification(np.eye(2)[[0, 1, 1, 0]], np.array([0, 1, 0, 0]), ["no", "yes"])
    print_metrics("run", {"test": Measured(evaluation)})
    assert "beside" not in capsys.readouterr().out
    named = {"logistic regression": {"accuracy": 0.5, "f1_macro": 0.25, "cpu_seconds": 1.26}}
    print_metrics("run", {"test": Measured(evaluation, baselines=named)})
    lines = capsys.readouterr().out.splitlines()
    own, other = (next(line.split() for line in lines if name in line) for name in ("this model", "logistic"))
    assert "0.7500" in own and {"0.5000", "0.2500", "1.3"} <= set(other)
