"""Whole runs of the fusion classifier with missing modalities, subgroups and calibration."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from mmhf.cli import main
from mmhf.inference import predict_table
from mmhf.inference.loading import load_model
from mmhf.inference.pipelines import ImageTextClassificationPipeline
from mmhf.models.fusion import FusionProcessor
from mmhf.recipe import load_recipe
from mmhf.sample_data import read_sample
from mmhf.tasks import task_of

TRUST = {
    "model": {
        "modalities": {"stand_in": "learnt", "dropout": {"image": 0.2, "text": 0.2}},
        "image_projection": {"hidden_dims": [12], "activation": "gelu", "dropout": 0.1},
        "fusion": {"hidden_dims": [8, 6], "dropout": [0.1, 0.2], "activation": ["relu", "tanh"]},
    },
    "loss": {"auxiliary_weight": {"image": 0.3, "text": 0.2}, "focal_gamma": 1.5, "logit_adjustment": 1.0},
    "sampling": {"power": 1.0},
    "evaluation": {"subgroups": ["site"], "calibrate": True, "target_accuracy": 0.6, "subgroup_min_rows": 3},
}


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings with two labels and a column `site`; one row in 12 has no image, one no text, one neither."""
    folder = tmp_path_factory.mktemp("clinic")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "text", "label", "site", "split"])
        for index, drawing in enumerate(read_sample("train").slice(0, 96).to_pylist()):
            (folder / f"{index}.png").write_bytes(drawing["image"]["bytes"])
            place = index % 12
            name = "" if place in (5, 9) else f"{index}.png"
            text = "" if place in (7, 9) else drawing["caption"]
            split = ("train", "train", "validation", "test")[index // 12 % 4]
            label, site = ("rare", "usual")[index % 3 > 0], ("north", "south", "")[index % 5 % 3]
            writer.writerow([name, text, label, site, split])
    return folder


@pytest.fixture(scope="module")
def write_clinic_recipe(clinic: Path, write_tiny_recipe: Callable[..., Path]) -> Callable[..., Path]:
    def write(run_dir: Path, **changes: Any) -> Path:
        table = {"source": "table", "path": str(clinic / "table.csv"), "split_column": "split"}
        policies = {"on_bad_image": "mask", "on_empty_text": "mask"}
        changes["data"] = {**table, **policies, **changes.get("data", {})}
        training = {"output_dir": str(run_dir), "per_device_eval_batch_size": 16, **changes.get("training", {})}
        return write_tiny_recipe(run_dir.with_suffix(".yaml"), {**changes, "training": training})

    return write


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, write_clinic_recipe: Callable[..., Path]) -> Path:
    run_dir = tmp_path_factory.mktemp("trust") / "run"
    recipe = write_clinic_recipe(run_dir, **TRUST, training={"max_steps": 8})
    assert main(["train", str(recipe)]) == 0
    return run_dir


@pytest.mark.slow
def test_rows_with_one_modality_train_and_rows_with_neither_are_named(trained):
    bad = list(csv.DictReader((trained / "bad_examples.csv").open(encoding="utf-8")))
    train = [row for row in bad if row["split"] == "train"]
    reasons = sorted(row["reason"] for row in train)
    assert sum("neither image nor text" in reason for reason in reasons) == 4
    assert sum(reason == "no image is named" for reason in reasons) == 8
    weights = load_file(trained / "model.safetensors")
    assert weights["fusion.stand_ins"].abs().sum(dim=1).min() > 0, "both stand-ins have learnt"
    assert {"auxiliary_heads.image.weight", "auxiliary_heads.text.weight"} <= weights.keys()


@pytest.mark.slow
def test_metrics_and_report_name_modalities_subgroups_and_calibration(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    for name in ("ece", "image_only_accuracy", "text_only_accuracy", "mismatched_changed", "site_accuracy_gap"):
        assert 0 <= metrics[f"test_{name}"] <= 1, name
    report = (trained / "report.html").read_text(encoding="utf-8")
    for title in ("By modality: test", "Subgroups: test", "Calibration: test"):
        assert f"<h2>{title}</h2>" in report
    rows = list(csv.DictReader((trained / "subgroups.csv").open(encoding="utf-8")))
    test = {row["group"]: row for row in rows if row["split"] == "test" and row["metric"] == "accuracy"}
    assert set(test) == {"north", "south", "(missing)"}
    assert sum(int(row["rows"]) for row in test.values()) == 22
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in test.values())


@pytest.mark.slow
def test_the_temperature_is_kept_and_serves_everywhere(trained, clinic, tmp_path, capsys):
    model, processor = load_model(trained)
    assert model.config.calibration_temperature != 1.0
    served = ImageTextClassificationPipeline(model=model, processor=processor)
    predict_table(trained, clinic / "table.csv", tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    for index in (0, 5, 7):  # both, text alone, image alone
        row = rows[index]
        image = str(clinic / row["image"]) if row["image"] else None
        answer = served({"image": image, "text": row["text"]})
        assert answer[0]["label"] == row["label"]
        assert answer[0]["score"] == pytest.approx(float(row["confidence"]), abs=1e-5)
        if model.config.abstain_below is not None:
            assert str(answer[0]["abstain"]) == row["abstained"]
    assert rows[5]["error"] == "no image is named; predicted from the text alone"
    assert rows[7]["error"] == "the text is empty; predicted from the image alone"
    assert rows[9]["label"] == "" and rows[9]["error"] == "no image is named"
    assert main(["evaluate", str(trained), "--split", "test", "--output", str(tmp_path / "again")]) == 0
    first, again = (json.loads((path / "metrics.json").read_text()) for path in (trained, tmp_path / "again"))
    assert {name for name in again if first[name] != pytest.approx(again[name], abs=1e-5)} == set()


@pytest.mark.slow
def test_training_goes_on_from_a_calibrated_model_without_its_temperature(trained, write_clinic_recipe, tmp_path):
    recipe = write_clinic_recipe(tmp_path / "next", **{**TRUST, "evaluation": {}}, init_from=str(trained))
    task = task_of(load_recipe(recipe).recipe)
    model = task.build_model(task.load_data(), parent=trained)
    assert (model.config.calibration_temperature, model.config.abstain_below) == (1.0, None)
    forgets = {**TRUST, "model": {**TRUST["model"], "modalities": {}}}
    recipe = write_clinic_recipe(tmp_path / "other", **forgets, init_from=str(trained))
    assert main(["train", str(recipe)]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["image", "text"])
def test_a_masked_run_goes_by_the_other_modality_alone(hidden, write_clinic_recipe, tmp_path, clinic):
    run_dir = tmp_path / hidden
    recipe = write_clinic_recipe(run_dir, model={"modalities": {"mask": hidden}}, data={"on_bad_image": "skip"})
    before = task_of(load_recipe(recipe).recipe)
    assert main(["train", str(recipe)]) == 0
    model, processor = load_model(run_dir)
    served = ImageTextClassificationPipeline(model=model, processor=processor)
    rows = [
        {"image": str(clinic / f"{index}.png"), "text": text} for index in (0, 1) for text in ("a dog", "two cats")
    ]
    scores = np.array([served(row)[0]["score"] for row in rows]).reshape(2, 2)
    same_axis = 0 if hidden == "image" else 1
    assert np.ptp(scores, axis=same_axis).max() == 0 < np.ptp(scores, axis=1 - same_axis).max()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert "test_image_only_accuracy" not in metrics and "test_accuracy" in metrics
    plan = (run_dir / "trainer_state.json").read_text()
    encoder = "vision" if hidden == "image" else "text"
    assert f"lr/{encoder}" not in plan and "lr/head" in plan
    assert before.missing_modalities() == sorted({hidden, "text"})


def test_calibration_needs_a_validation_split(write_clinic_recipe, tmp_path, clinic, capsys):
    only_train = clinic / "train_only.csv"
    lines = (clinic / "table.csv").read_text(encoding="utf-8").splitlines()
    only_train.write_text("\n".join([lines[0], *lines[1:5]]) + "\n", encoding="utf-8")
    data = {"path": None, "split_column": None, "train": str(only_train), "image_root": str(clinic)}
    recipe = write_clinic_recipe(tmp_path / "run", evaluation={"calibrate": True}, data=data)
    assert main(["train", str(recipe), "training.per_device_train_batch_size=2"]) == 2
    assert "evaluation.calibrate: is fitted on a validation split" in capsys.readouterr().err


def test_a_subgroup_column_that_is_not_there_is_named(write_clinic_recipe, tmp_path, capsys):
    assert main(["train", str(write_clinic_recipe(tmp_path / "run", evaluation={"subgroups": ["sit"]}))]) == 2
    assert "no column 'sit'; did you mean site?" in capsys.readouterr().err


def test_images_are_normalised_by_their_own_statistics(write_clinic_recipe, tmp_path):
    task = task_of(load_recipe(write_clinic_recipe(tmp_path / "run", data={"mean_std": "computed"})).recipe)
    data = task.load_data()
    processor = task.build_processor(data)
    rows = task.torch_dataset(data, "train")
    batch = task.collator(processor, split="train", seed=0)(rows.__getitems__(range(len(rows))))
    values = batch["pixel_values"][batch["image_mask"] == 1]
    assert values.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (values.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3
    processor.save_pretrained(tmp_path)
    loaded = FusionProcessor.from_pretrained(tmp_path).image_processor
    assert list(loaded.image_mean) == processor.image_processor.image_mean


@pytest.mark.slow
def test_computed_statistics_do_not_go_with_a_parents(write_clinic_recipe, tmp_path, trained, capsys):
    recipe = write_clinic_recipe(tmp_path / "run", data={"mean_std": "computed"}, init_from=str(trained))
    assert main(["train", str(recipe)]) == 2
    assert "data.mean_std: `init_from` normalises images as its parent did" in capsys.readouterr().err


@pytest.mark.slow
def test_either_modality_alone_is_a_coin_toss_on_the_sample(tiny_recipe, tmp_path):
    """Each drawing and each name of the sample's test split is there once as a true pair and once as a false one."""
    model_section = {"fusion": {"hidden_dims": [], "strategy": "concat_mlp"}}
    recipe = tiny_recipe({"data": {"source": "sample", "path": None, "image_size": 32}, "model": model_section})
    task = task_of(load_recipe(recipe).recipe)
    data = task.load_data(splits=["test"], check_images=False)
    model = task.build_model(data).eval()
    collator = task.collator(task.build_processor(data), split="test", seed=0)
    batch = collator(task.torch_dataset(data, "test").__getitems__(range(0, 1864, 20)))
    with torch.no_grad():  # embeddings around 0, so that random weights predict both labels
        images = model.image_features(batch["pixel_values"])
        texts = model.text_features(batch["input_ids"], batch["attention_mask"])
        for layer, values in ((model.vision_projection, images), (model.text_projection, texts)):
            layer.bias.copy_(-layer.weight @ values.mean(dim=0))
    args = TrainingArguments(str(tmp_path), per_device_eval_batch_size=64, remove_unused_columns=False, use_cpu=True)
    measured = task.measure(task.make_evaluator(model, args, collator), data, "test")
    assert measured.metrics["image_only_accuracy"] == measured.metrics["text_only_accuracy"] == 0.5
    assert measured.modalities.num_rows == 1864
    for view in ("image_only", "text_only"):
        precision = measured.modalities.metrics[view]["precision_macro"]
        assert precision == 0.5, "both labels are predicted: with one of them, it would be 0.25"
