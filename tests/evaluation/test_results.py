import json
from pathlib import Path

import numpy as np
import pytest

from mmhf.evaluation.results import write_details, write_metrics


def test_metrics_are_flat_by_split(tmp_path):
    path = tmp_path / "run" / "metrics.json"
    write_metrics(path, {"validation": {"accuracy": np.float32(0.5), "rows": 3}, "test": {"accuracy": 1.0}})
    assert json.loads(path.read_text()) == {"validation_accuracy": 0.5, "validation_rows": 3, "test_accuracy": 1.0}


def test_what_is_not_finite_is_null_because_json_has_no_nan(tmp_path):
    write_metrics(tmp_path / "metrics.json", {"test": {"loss": float("nan"), "accuracy": 0.1}})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"test_loss": None, "test_accuracy": 0.1}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_metrics(path, {"test": {"accuracy": 0.5}})
    before = path.read_text()

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_metrics(path, {"test": {"accuracy": 0.9}})
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]


def test_definitions_and_tables_are_kept_and_empty_tables_are_not(tmp_path: Path):
    rows = [{"label": "Äpfel", "f1": 0.5, "roc_auc": None}]
    write_details(tmp_path / "evaluation.json", {"f1": "What F1 is."}, {"test": {"By class": rows, "By group": []}})
    assert json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8")) == {
        "protocols": {"f1": "What F1 is."},
        "tables": {"test": {"By class": rows}},
    }
