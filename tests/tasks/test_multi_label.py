"""Several labels a row on the whole road: train, evaluate, release, serve, predict; for both classifiers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForImageClassification
from transformers import pipeline as stock_pipeline

import mmhf
from mmhf.data.images import decode_image
from mmhf.errors import InputError
from mmhf.inference import JobSettings, predict_table
from mmhf.inference.serving.limits import Limits
from mmhf.inference.serving.schemas import Generation, Input
from mmhf.inference.serving.services import load_service
from mmhf.sample_data import read_sample

NAMES = ["face", "animal", "food"]
VISION = {"backbone": "timm/test_efficientnet", "pretrained": False}
SETS = {"source": "sample", "image_size": 32, "limit": 40, "multi_label": {"names": NAMES, "others": "ignore"}}
TRAINING = {"per_device_train_batch_size": 8, "logging_steps": 1, "report_to": "none", "metric_for_best_model": "map"}
STAGES = [{"name": "head", "steps": 3, "train": ["head"]}, {"name": "all", "steps": 3, "train": "all"}]

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, text_encoder_dir: Path) -> Train:
    """Train a tiny classifier of the sample's keywords, with changes; returns the run's folder."""

    def train(task: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("several")
        text = {"backbone": str(text_encoder_dir), "pooling": "mean"}
        model = {"vision": VISION, "text": text, "embedding_dim": 16, "fusion": {"hidden_dims": [8]}}
        values = {
            "task": task,
            "model": model if task == "image-text-classification" else {"vision": VISION, "head": {"hidden_dim": 8}},
            "data": SETS if task == "image-classification" else {**SETS, "max_length": 16},
            "stages": STAGES,
            **changes,
            "training": {**TRAINING, "output_dir": str(folder / "run"), **changes.get("training", {})},
        }
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return Path(mmhf.train(path).folder)

    return train


@pytest.fixture(scope="module")
def classifier(train: Train) -> Path:
    loss = {"asymmetric": {"gamma_negative": 2.0}, "class_weights": "balanced"}
    return train("image-classification", loss=loss, evaluation={"calibrate": True})


@pytest.fixture(scope="module")
def fusion(train: Train) -> Path:
    return train("image-text-classification", loss={"focal_gamma": 2.0, "auxiliary_weight": 0.3})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawings of the sample, and a table that names them with a text."""
    folder = tmp_path_factory.mktemp("pictures")
    drawings = read_sample("test").slice(0, 3).to_pylist()
    for number, drawing in enumerate(drawings):
        (folder / f"{number}.png").write_bytes(drawing["image"]["bytes"])
    table = {"image": [f"{number}.png" for number in range(3)], "text": [each["caption"] for each in drawings]}
    pd.DataFrame(table).to_csv(folder / "in.csv", index=False)
    return folder


def predicted(model: Path, pictures: Path, output: Path, **options: Any) -> pd.DataFrame:
    predict_table(model, pictures / "in.csv", output, JobSettings(progress=False, device="cpu"), **options)
    return pd.read_parquet(output) if output.suffix == ".parquet" else pd.read_csv(output)


def test_a_run_keeps_labels_thresholds_and_temperature(classifier: Path):
    config = json.loads((classifier / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == NAMES
    assert len(config["thresholds"]) == 3 and all(0 < limit < 1 for limit in config["thresholds"])
    assert config["calibration_temperature"] != 1
    train = mmhf.load_dataset(classifier / "recipe.yaml", splits=["train"])["train"]
    counts = np.bincount(np.concatenate(train["labels"]).astype(int), minlength=3)
    assert config["class_weights"] == pytest.approx(((len(train) - counts) / counts).tolist())
    assert train.features["labels"].feature.names == NAMES


@pytest.mark.slow
def test_metrics_and_report(classifier: Path, fusion: Path):
    for folder in (classifier, fusion):
        metrics = json.loads((folder / "metrics.json").read_text())
        assert {
            f"{split}_{name}" for split in ("validation", "test") for name in ("loss", "map", "f1_samples")
        } <= set(metrics)
        details = json.loads((folder / "evaluation.json").read_text())
        assert [row["label"] for row in details["tables"]["test"]["By class"]] == NAMES
        page = (folder / "report.html").read_text()
        names = [name.removeprefix("test_") for name in metrics if name.startswith("test_")]
        assert not set(names) - set(details["protocols"])
        for said in (
            "Mean average precision, test split",
            "Calibration: test",
            "Labels: test",
            "Labels together: test",
            "mistakes",
        ):
            assert said in page
        assert (folder / "plots" / "test_label_reliability.png").is_file()
    metrics = json.loads((fusion / "metrics.json").read_text())
    views = ("image_only_map", "text_only_map", "mismatched_image_map", "mismatched_text_map", "mismatched_changed")
    assert {f"test_{name}" for name in views} <= set(metrics)
    history = json.loads((fusion / "trainer_state.json").read_text())["log_history"]
    assert any("eval_map" in entry for entry in history)


def test_evaluating_again_gives_the_numbers_of_the_run(classifier: Path):
    found = mmhf.evaluate(classifier, splits=["test"])["test"].metrics
    trained = json.loads((classifier / "metrics.json").read_text())
    assert found == pytest.approx({name: trained[f"test_{name}"] for name in found}, abs=1e-5)


@torch.no_grad()
def test_model_stock_pipeline_and_prediction_agree(classifier: Path, pictures: Path, tmp_path: Path):
    served = mmhf.pipeline("image-classification", model=str(classifier))
    model = AutoModelForImageClassification.from_pretrained(classifier).eval()
    images = [decode_image(pictures / f"{number}.png") for number in range(3)]
    encoding = served.image_processor(images=images, return_tensors="pt")
    expected = model(**encoding).logits.double().sigmoid().numpy()
    rows = predicted(classifier, pictures, tmp_path / "out.parquet")
    np.testing.assert_allclose(rows[[f"probability_{name}" for name in NAMES]], expected, rtol=0, atol=1e-6)
    limits = model.config.thresholds
    for row, chances in zip(rows["labels"], expected, strict=True):
        assert set(row) == {
            name for name, chance, limit in zip(NAMES, chances, limits, strict=True) if chance >= limit
        }
    stock = stock_pipeline("image-classification", model=model, image_processor=served.image_processor)
    for asked in ({"function_to_apply": "sigmoid"}, {}):  # the config says so, too
        for number, chances in enumerate(expected):
            answers = stock(str(pictures / f"{number}.png"), top_k=3, **asked)
            found = {each["label"]: each["score"] for each in answers}
            np.testing.assert_allclose([found[name] for name in NAMES], chances, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_pipeline_of_pairs_says_which_labels_are_given(fusion: Path, pictures: Path, tmp_path: Path):
    rows = predicted(fusion, pictures, tmp_path / "out.parquet")
    served = mmhf.pipeline("image-text-classification", model=str(fusion))
    answers = served([{"image": str(pictures / row["image"]), "text": row["text"]} for _, row in rows.iterrows()])
    for (_, row), answer in zip(rows.iterrows(), answers, strict=True):
        for each in answer:
            assert each["score"] == pytest.approx(row[f"probability_{each['label']}"], abs=1e-6)
        assert [each["label"] for each in answer if each["given"]] == list(row["labels"])


def test_a_threshold_of_ones_own_and_a_csv(fusion: Path, pictures: Path, tmp_path: Path):
    every = predicted(fusion, pictures, tmp_path / "all.csv", threshold=0.0)
    assert all(sorted(json.loads(labels)) == sorted(NAMES) for labels in every["labels"])
    none = predicted(fusion, pictures, tmp_path / "none.csv", threshold=1.0)
    assert none["labels"].tolist() == ["[]"] * 3


@pytest.mark.parametrize("family", ["classifier", "fusion"])
@pytest.mark.slow
def test_the_server_answers_with_lists(family: str, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(family)
    rows = predicted(folder, pictures, tmp_path / "out.parquet")
    service = load_service(folder)
    assert service.labels == NAMES
    given = [
        Input(image=None, text=row["text"] if family == "fusion" else None).model_copy(
            update={"image": (pictures / row["image"]).read_bytes()}
        )
        for _, row in rows.iterrows()
    ]
    examples = [service.read(each, "inputs.0", Limits()) for each in given]
    answers = service.run(service.options(None, Generation()), examples)
    for (_, row), answer in zip(rows.iterrows(), answers, strict=True):
        assert answer.label is None and answer.labels == list(row["labels"])
        assert list(answer.probabilities) == NAMES
    every = service.run(service.options(0.0, Generation()), examples)
    assert all(len(answer.labels) == 3 for answer in every)


@pytest.mark.slow
def test_training_goes_on_from_a_run_of_several_labels_and_from_no_other(classifier: Path, train: Train):
    changes = {"init_from": str(classifier), "stages": STAGES[:1]}
    child = train("image-classification", **changes)
    assert json.loads((child / "config.json").read_text())["problem_type"] == "multi_label_classification"
    table = {name: value for name, value in SETS.items() if name != "multi_label"}
    with pytest.raises(InputError, match="its labels are face, animal, food, the data's are"):
        train("image-classification", **changes, data=table, training={"metric_for_best_model": "accuracy"})


@pytest.mark.slow
def test_released_with_a_card_that_has_each_label(train: Train, tmp_path: Path):
    repo = tmp_path / "releases"
    train("image-classification", stages=STAGES[:1], release={"repo": str(repo), "version": "0.1"})
    card = (repo / "v0.1" / "README.md").read_text()
    assert "| map |" in card and "By class, test" in card and "| face |" in card
    assert mmhf.pipeline(str(repo / "v0.1")).model.config.thresholds


def test_own_data_of_lists(fusion: Path):
    drawings = read_sample("test").slice(0, 12).to_pylist()
    rows = [{"image": each["image"]["bytes"], "text": each["caption"], "label": each["keywords"]} for each in drawings]
    rows[3]["label"] = []
    with pytest.raises(InputError, match="row 4: has no labels, like 1 of 12 rows"):
        mmhf.evaluate(fusion, pd.DataFrame(rows))
    measured = mmhf.evaluate(fusion, pd.DataFrame(rows), overrides=["data.multi_label.empty=none"])["test"]
    assert measured.num_rows == 12
