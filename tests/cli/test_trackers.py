"""Trackers that run without a server get one run with the metrics of training and of the final evaluation."""

from __future__ import annotations

import json

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(autouse=True)
def _own_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")  # so that what a run sets is taken back
        monkeypatch.delenv(name)


@pytest.mark.slow
def test_tensorboard(tiny_recipe, two_stages, succeed, tmp_path):
    two_stages["training"]["report_to"] = ["tensorboard"]
    succeed("train", tiny_recipe(two_stages))

    (folder,) = {path.parent for path in (tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*")}
    accumulator = EventAccumulator(str(folder)).Reload()
    scalars = {tag: [event.step for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
    assert scalars["train/loss"] == [1, 2, 3, 4, 5, 6]
    assert scalars["train/lr/head"] == [1, 2, 3, 4, 5, 6]
    assert scalars["train/lr/vision"] == [4, 5, 6]
    (accuracy,) = (event.value for event in accumulator.Scalars("test/accuracy"))
    assert accuracy == pytest.approx(json.loads((tmp_path / "run" / "metrics.json").read_text())["test_accuracy"])


@pytest.mark.slow
def test_wandb(tiny_recipe, succeed, tmp_path):
    succeed("train", tiny_recipe({"training": {"report_to": ["wandb"], "project": "tiny", "run_name": "one"}}))

    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert (run / "files" / "report.html").read_bytes() == (tmp_path / "run" / "report.html").read_bytes()
    plots = {path.name.rsplit("_", 2)[0] for path in (run / "files" / "media" / "images" / "plots").iterdir()}
    assert plots == {path.stem for path in (tmp_path / "run" / "plots").iterdir()}
    assert wandb.run is None, "the run was left open"
