import json

import numpy as np
import pytest

from mmhf.evaluation.metrics_file import write_metrics


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
