"""`mmhf train --folds`: a run for each fold, and what they say together."""

from __future__ import annotations

import mmhf  # (first: it makes torchvision importable beside a CPU build of torch)

import json  # isort: skip
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from transformers import TrainerCallback

from mmhf.errors import InputError

ROOT = Path(__file__).parents[2]
CLASSES = {
    "task": "image-classification",
    "model": {"vision": {"backbone": "timm/test_efficientnet", "pretrained": False}},
}
SAMPLE = {"source": "sample", "image_size": 32, "limit": 18}


@pytest.fixture(scope="module")
def three(write_tiny_recipe, tmp_path_factory):
    """A finished cross-validation of three folds: the recipe and the folder."""
    folder = tmp_path_factory.mktemp("folds")
    recipe = write_tiny_recipe(folder / "tiny.yaml", {"training": {"output_dir": str(folder / "cv")}})
    return recipe, mmhf.train(recipe, folds=3).folder


def numbers(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


class StopIn(TrainerCallback):
    """As a kill would: ends the process's training in one fold."""

    def __init__(self, fold: str, step: int) -> None:
        self.fold, self.step = fold, step

    def on_step_end(self, args, state, control, **kwargs):
        if Path(args.output_dir).name == self.fold and state.global_step == self.step:
            raise KeyboardInterrupt


def test_metrics_are_mean_and_deviation_of_the_runs(three):
    folder = three[1]
    folds = [numbers(folder / f"fold_{number}") for number in (1, 2, 3)]
    whole = numbers(folder)
    assert whole.keys() == {key for name in folds[0] for key in (name, f"{name}_std")}
    for name in ("validation_accuracy", "test_loss"):
        values = [fold[name] for fold in folds]
        assert whole[name] == pytest.approx(statistics.mean(values))
        assert whole[f"{name}_std"] == pytest.approx(statistics.stdev(values))
    table = pd.read_csv(folder / "folds.csv").set_index("metric")
    assert table.loc["test_loss", ["fold 1", "fold 2", "fold 3"]].tolist() == [fold["test_loss"] for fold in folds]
    page = (folder / "report.html").read_text()
    assert "standard deviation (n - 1) over 3 folds" in page


def test_each_row_is_predicted_once_by_the_model_that_did_not_see_it(three):
    folder = three[1]
    table = pd.read_csv(folder / "out_of_fold.csv", dtype={"id": str, "label": str, "prediction": str})
    assert len(table) == 48 and table["id"].is_unique and set(table["fold"]) == {1, 2, 3}
    right = table["label"] == table["prediction"]
    for number, of_fold in right.groupby(table["fold"]):
        assert of_fold.mean() == pytest.approx(numbers(folder / f"fold_{number}")["validation_accuracy"])
    assert (table[["probability_fake", "probability_true"]].max(axis=1) == table["confidence"]).all()
    second = mmhf.Run(folder).folds[1]
    rows = mmhf.load_dataset(second.folder / "recipe.yaml", splits=["validation"])["validation"]
    assert rows["id"][:] == table.loc[table["fold"] == 2, "id"].tolist()
    data = pd.DataFrame({"image": rows["image"][:], "text": rows["text"][:]})
    predicted = mmhf.predict(second, data)["confidence"].tolist()
    assert predicted == pytest.approx(table.loc[table["fold"] == 2, "confidence"].tolist(), abs=1e-5)


def test_a_fold_is_a_run_that_its_recipe_repeats(three, tmp_path):
    folder = three[1]
    recipe = yaml.safe_load((folder / "fold_2" / "recipe.yaml").read_text())
    assert recipe["data"]["fold"] == {"number": 2, "of": 3}
    again = mmhf.train(folder / "fold_2" / "recipe.yaml", [f"training.output_dir={tmp_path / 'again'}"]).folder
    assert (again / "model.safetensors").read_bytes() == (folder / "fold_2" / "model.safetensors").read_bytes()
    assert numbers(again) == numbers(folder / "fold_2")


def test_a_stopped_cross_validation_goes_on_in_its_fold(three, tmp_path, monkeypatch):
    recipe, whole = three
    changes = ["training.output_dir=null", "training.save_steps=1", "training.save_strategy=steps"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        mmhf.train(recipe, changes, folds=3, callbacks=[StopIn("fold_2", 2)])
    (folder,) = (tmp_path / "outputs" / "tiny").iterdir()
    assert (folder / "fold_2" / "checkpoint-1").is_dir() and not (folder / "fold_3").exists()
    first = (folder / "fold_1" / "model.safetensors").stat().st_mtime_ns
    steps: list[str] = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(f"{Path(args.output_dir).name} {state.global_step}")

    assert mmhf.train(recipe, changes, folds=3, callbacks=[Count()], resume=True).folder == folder.relative_to(
        tmp_path
    )
    assert steps == ["fold_2 2", "fold_3 1", "fold_3 2"]
    assert (folder / "fold_1" / "model.safetensors").stat().st_mtime_ns == first
    assert (folder / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    assert (folder / "out_of_fold.csv").read_bytes() == (whole / "out_of_fold.csv").read_bytes()
    with pytest.raises(InputError, match="no unfinished run"):
        mmhf.train(recipe, changes, folds=3, resume=True)


@pytest.mark.parametrize(
    ("changes", "folds", "said"),
    [
        ([], 1, "--folds 1: a cross-validation has 2 folds or more"),
        (["release={repo: releases/x, version: '0.1'}"], 3, "add ~release here"),
        (["training.push_to_hub=true"], 3, "none of them is the one to push"),
        (["data.prepared=prepared/x"], 3, "folds are cut from the source"),
        (["data.fold={number: 1, of: 3}"], 3, "remove one of the two"),
        (["evaluation.splits=[test]"], 3, "add validation"),
        (["data={source: hub, path: org/name, streaming: true}"], 3, "which is not cut into folds"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(changes, folds, said, tiny_recipe, refusal, tmp_path, monkeypatch):
    monkeypatch.setattr("mmhf.tasks.classification.ClassificationTask.build_model", None)
    assert said in refusal("train", tiny_recipe(), *changes, "--folds", folds)
    assert not (tmp_path / "run").exists()


def test_more_folds_than_rows_are_refused_before_a_model_is_built(tiny_recipe, monkeypatch):
    monkeypatch.setattr("mmhf.tasks.classification.ClassificationTask.build_model", None)
    with pytest.raises(InputError, match="25 folds: the label 'fake' has 24 rows"):
        mmhf.train(tiny_recipe(), folds=25)


def test_folders_that_hold_something_else_are_refused(three, refusal, tmp_path):
    recipe, finished = three
    folder = shutil.copytree(finished, tmp_path / "cv")
    place = f"training.output_dir={folder}"
    assert "holds a finished cross-validation" in refusal("train", recipe, place, "--folds", 3)
    assert "of other folds" in refusal("train", recipe, place, "--folds", 4)
    assert "holds files but no run" in refusal("train", recipe, place)
    one = f"training.output_dir={folder / 'fold_1'}"
    assert "holds a run without folds" in refusal("train", recipe, one, "--folds", 3)
    (folder / "metrics.json").unlink()
    line = refusal("train", recipe, place, "training.learning_rate=0.5", "--folds", 3)
    assert "finished fold of another recipe (training.learning_rate: 0.01 → 0.5)" in line
    (folder / "thesis.tex").write_text("months of work")
    assert "holds thesis.tex and no cross-validation" in refusal("train", recipe, place, "--folds", 3)


def test_the_plan_is_that_of_the_first_fold(three, succeed):
    out = succeed("plan", three[0], "--folds", 3)
    assert "each a run such as this" in out and "train 32, validation 16, test 12" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "columns"),
    [
        (
            {"multi_label": {"names": ["face", "animal"], "others": "ignore"}},
            {"labels", "prediction", "probability_face"},
        ),
        ({"regression": {}}, {"true_words", "predicted_words"}),
        ({"ordinal": {"order": ["negative", "neutral", "positive"]}}, {"label", "prediction", "confidence"}),
    ],
)
def test_other_targets(target, columns, tmp_path):
    training = {"max_steps": 1, "per_device_train_batch_size": 8, "output_dir": str(tmp_path / "cv")}
    run = mmhf.train({**CLASSES, "data": {**SAMPLE, **target}, "training": training}, folds=2)
    table = pd.read_csv(run.folder / "out_of_fold.csv")
    rows = [numbers(fold.folder) for fold in run.folds]
    assert columns <= set(table.columns) and len(table) == 36 and table["id"].is_unique and len(rows) == 2


@pytest.mark.slow
def test_dual_encoders(text_encoder_dir, tmp_path):
    recipe = {
        "task": "contrastive",
        "model": {
            "vision": {"backbone": "timm/test_efficientnet", "pretrained": False, "pooling": "avg"},
            "text": {"backbone": str(text_encoder_dir), "pooling": "mean"},
            "embedding_dim": 8,
        },
        "data": {"source": "sample", "image_size": 32, "max_length": 16, "limit": 18},
        "training": {"max_steps": 1, "per_device_train_batch_size": 8, "output_dir": str(tmp_path / "cv")},
    }
    run = mmhf.train(recipe, folds=2)
    assert run.metrics["validation_loss_std"] >= 0 and not (run.folder / "out_of_fold.csv").exists()


@pytest.mark.slow
def test_two_processes_cross_validate_as_one(tiny_recipe, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*command, str(ROOT / "scripts" / "train.py"), str(tiny_recipe()), "--folds", "2", "training.output_dir=null"],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "tiny").iterdir()
    table = pd.read_csv(folder / "out_of_fold.csv", dtype={"id": str, "label": str, "prediction": str})
    assert len(table) == 48 and table["id"].is_unique
    folds = [numbers(folder / f"fold_{number}")["validation_accuracy"] for number in (1, 2)]
    assert numbers(folder)["validation_accuracy"] == pytest.approx(statistics.mean(folds))
    assert f"{statistics.mean(folds):.4f} ± {statistics.stdev(folds):.4f}" in done.stdout
