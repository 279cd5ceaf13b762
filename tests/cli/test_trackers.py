"""Each tracker gets one run: recipe, metrics of training and of the final evaluation, artifacts, across resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from wandb.proto import wandb_internal_pb2

from mmhf.recipe import load_recipe
from mmhf.training.trainer import MMTrainer

NAMES = ("TENSORBOARD_LOGGING_DIR", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def _own_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what a run sets is taken back
        monkeypatch.delenv(name)


@pytest.fixture
def resumed(tiny_recipe, two_stages, mmhf_cli, succeed, tmp_path) -> Callable[..., Path]:
    """Train, be interrupted after 4 of 6 steps, with a checkpoint after 3, and go on; gives the run folder."""

    def run(tracker: str, **sections: Any) -> Path:
        training = {"report_to": [tracker], "project": "tiny", "run_name": "one"}
        saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": None}
        recipe = tiny_recipe({**two_stages, **sections, "training": {**training, **saving}})
        original = MMTrainer.training_step

        def training_step(self: MMTrainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 4:
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MMTrainer, "training_step", training_step)
            assert mmhf_cli("train", recipe).code == 130
        succeed("train", recipe)
        return tmp_path / "run"

    return run


@pytest.fixture
def settings(tmp_path) -> Callable[[], dict[str, Any]]:
    """Every key of the recipe that was trained."""
    return lambda: {
        key: value
        for key, value in load_recipe(tmp_path / "run" / "recipe.yaml").leaves().items()
        if not key.startswith("history")
    }


def metrics_of(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return found


@pytest.mark.slow
def test_tensorboard(resumed, settings):
    run = resumed("tensorboard")
    accumulator = EventAccumulator(str(run / "tensorboard")).Reload()
    scalars = {tag: [event.step for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
    assert scalars["train/loss"] == [1, 2, 3, 4, 5, 6]
    assert scalars["train/accuracy"] == scalars["train/lr/head"] == [1, 2, 3, 4, 5, 6]
    assert scalars["train/lr/vision"] == [4, 5, 6]
    (accuracy,) = (event.value for event in accumulator.Scalars("test/accuracy"))
    assert accuracy == pytest.approx(metrics_of(run)["test_accuracy"])
    (table,) = accumulator.Tensors("recipe/text_summary")[-1].tensor_proto.string_val
    keys = {line.split("`")[1] for line in table.decode().splitlines()[2:]}
    assert keys == settings().keys()
    found = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert plugin_data_pb2.HParamsPluginData.FromString(found).session_start_info.hparams.keys() == settings().keys()


def offline_records(folder: Path) -> Iterator[Any]:
    """What an offline run of wandb wrote: records in the log format of LevelDB, behind a header of 7 bytes."""
    (file,) = folder.glob("run-*.wandb")
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_wandb(resumed, settings, tmp_path):
    run = resumed("wandb", tracking={"log_model": ["wandb"]})
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    ids = {folder.name.rpartition("-")[2] for folder in folders}
    assert len(folders) == 2 and ids == {json.loads((run / "trackers.json").read_text())["wandb"]}
    records = [record for folder in folders for record in offline_records(folder)]
    logged = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [entry["train/global_step"] for entry in logged if "train/accuracy" in entry] == [1, 2, 3, 4, 4, 5, 6]
    config = {
        update.key or ".".join(update.nested_key)
        for record in records
        for update in (*record.config.update, *record.run.config.update)
    }
    assert settings().keys() <= config
    assert any(record.HasField("artifact") and record.artifact.type == "model" for record in records) or any(
        record.request.log_artifact.artifact.type == "model" for record in records
    )
    last = folders[-1] / "files"
    assert (last / "report.html").read_bytes() == (run / "report.html").read_bytes()
    plots = {path.name.rsplit("_", 2)[0] for path in (last / "media" / "images" / "plots").iterdir()}
    assert plots == {path.stem for path in (run / "plots").iterdir()}
    assert wandb.run is None, "the run was left open"


@pytest.mark.slow
def test_mlflow(resumed, settings, tmp_path, fakeddit_dir):
    mlflow = pytest.importorskip("mlflow")
    run = resumed("mlflow", data={"missing": ["x" * 80] * 100})
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    (found,) = mlflow.search_runs(experiment_names=["tiny"], output_format="list")
    assert found.info.run_id == json.loads((run / "trackers.json").read_text())["mlflow"]
    assert (found.info.status, found.info.run_name) == ("FINISHED", "one")
    assert found.data.params.keys() == settings().keys()
    assert found.data.params["model.fusion.dropout"] == "0.1"
    assert found.data.params["data.missing"] == "see long_values/data.missing.txt"
    long = mlflow.artifacts.load_text(f"runs:/{found.info.run_id}/long_values/data.missing.txt")
    assert long == str(["x" * 80] * 100)
    assert found.data.metrics["test_accuracy"] == pytest.approx(metrics_of(run)["test_accuracy"])
    steps = [metric.step for metric in mlflow.MlflowClient().get_metric_history(found.info.run_id, "accuracy")]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6]

    model = mlflow.pyfunc.load_model(f"runs:/{found.info.run_id}/model")
    image = next((fakeddit_dir / "public_image_set").iterdir())
    (scores,) = model.predict([{"image": str(image), "text": "a frog"}])
    assert {score["label"] for score in scores} == {"0", "1"} or len(scores) == 2
    assert sum(score["score"] for score in scores) == pytest.approx(1.0)


@pytest.mark.slow
def test_trackio(resumed, settings):
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run = resumed("trackio")
    name = json.loads((run / "trackers.json").read_text())["trackio"]
    (found,) = trackio.Api().runs("tiny")
    assert found.name == name and name.startswith("one-")
    assert settings().keys() <= found.config.keys()
    logged = SQLiteStorage.get_logs("tiny", name)
    assert {row["train/global_step"] for row in logged if "train/accuracy" in row} == {1, 2, 3, 4, 5, 6}
