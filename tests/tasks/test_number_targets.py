"""Numbers and ordered classes on the whole road: train, evaluate, release, serve, predict; for both families."""

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
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import mmhf
from mmhf.data.images import decode_image
from mmhf.errors import InputError
from mmhf.inference import JobSettings, predict_table
from mmhf.inference.serving.limits import Limits
from mmhf.inference.serving.schemas import Generation, Input
from mmhf.inference.serving.services import load_service
from mmhf.models.ordinal_loss import median_classes
from mmhf.sample_data import read_sample

MOODS = ["negative", "neutral", "positive"]
VISION = {"backbone": "timm/test_efficientnet", "pretrained": False}
SAMPLE = {"source": "sample", "image_size": 32, "limit": 40}
KINDS = {"regression": {"regression": {}}, "ordinal": {"ordinal": {"order": MOODS}}}
TRAINING = {"per_device_train_batch_size": 8, "logging_steps": 1, "report_to": "none", "metric_for_best_model": "mae"}
STAGES = [{"name": "head", "steps": 3, "train": ["head"]}, {"name": "all", "steps": 3, "train": "all"}]

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, text_encoder_dir: Path) -> Train:
    """Train a tiny model of the sample, with changes; returns the run's folder."""

    def train(task: str, kind: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        text = {"backbone": str(text_encoder_dir), "pooling": "mean"}
        pairs = {"vision": VISION, "text": text, "embedding_dim": 16, "fusion": {"hidden_dims": [8]}}
        values = {
            "task": task,
            "model": pairs if task == "image-text-classification" else {"vision": VISION, "head": {"hidden_dim": 8}},
            "data": {**SAMPLE, **KINDS[kind], **({"max_length": 16} if task == "image-text-classification" else {})},
            "stages": STAGES,
            **changes,
            "training": {**TRAINING, "output_dir": str(folder / "run"), **changes.get("training", {})},
        }
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return Path(mmhf.train(path).folder)

    return train


@pytest.fixture(scope="module")
def regression(train: Train) -> Path:
    return train("image-classification", "regression", loss={"huber_delta": 1.0}, evaluation={"baselines": "on"})


@pytest.fixture(scope="module")
def ordinal(train: Train) -> Path:
    options = {"loss": {"class_weights": "balanced"}, "evaluation": {"calibrate": True}}
    return train("image-classification", "ordinal", **options)


@pytest.fixture(scope="module")
def pairs(train: Train) -> dict[str, Path]:
    """Fusion models by kind."""
    return {kind: train("image-text-classification", kind, loss={"auxiliary_weight": 0.3}) for kind in KINDS}


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
    return pd.read_parquet(output)


def config_of(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((run / "config.json").read_text())
    return config


def log_of(run: Path) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return history


def test_a_run_keeps_mean_and_deviation_and_goes_by_the_smallest_error(regression: Path):
    config = config_of(regression)
    assert (config["problem_type"], config["ordinal"], config["huber_delta"]) == ("regression", False, 1.0)
    assert config["id2label"] == {"0": "words"}
    rows = mmhf.load_dataset(regression / "recipe.yaml", splits=["train"])["train"]
    numbers = np.asarray(rows["numbers"])
    assert config["target_mean"] == pytest.approx(numbers.mean(axis=0))
    assert config["target_std"] == pytest.approx(numbers.std(axis=0))
    evaluated = [entry["eval_mae"] for entry in log_of(regression) if "eval_mae" in entry]
    state = json.loads((regression / "trainer_state.json").read_text())
    assert state["best_metric"] == min(evaluated)
    assert any("mae" in entry and "accuracy" not in entry for entry in log_of(regression))


def test_metrics_report_and_baselines(regression: Path, ordinal: Path):
    metrics = json.loads((regression / "metrics.json").read_text())
    names = ("loss", "mae", "rmse", "r2", "spearman", "kendall")
    assert {f"{split}_{name}" for split in ("validation", "test") for name in names} <= set(metrics)
    details = json.loads((regression / "evaluation.json").read_text())
    assert details["tables"]["test"]["By number"][0]["number"] == "words"
    assert "Mean absolute error" in details["protocols"]["mae"]
    assert (regression / "plots" / "test_residuals.png").is_file()
    page = (regression / "report.html").read_text()
    for said in (
        "Mean absolute error, test split",
        "the training mean",
        "the training median",
        "Largest errors: test",
    ):
        assert said in page
    graded = json.loads((ordinal / "metrics.json").read_text())
    assert {f"test_{name}" for name in ("accuracy", "f1_macro", "kappa_quadratic", "mae")} <= set(graded)
    page = (ordinal / "report.html").read_text()
    assert config_of(ordinal)["calibration_temperature"] != 1 and "test_ece_uncalibrated" in graded
    for said in (
        "Calibration: test",
        "always “",
        "negative &lt; neutral &lt; positive",
        "Confusion matrix, test split",
    ):
        assert said in page


def test_pairs_are_measured_by_each_modality_alone(pairs: dict[str, Path]):
    for folder in pairs.values():
        metrics = json.loads((folder / "metrics.json").read_text())
        views = (
            "image_only_mae",
            "text_only_mae",
            "mismatched_image_mae",
            "mismatched_text_mae",
            "mismatched_changed",
        )
        assert {f"test_{name}" for name in views} <= set(metrics)
        names = {name.removeprefix("test_") for name in metrics if name.startswith("test_")}
        assert names <= set(json.loads((folder / "evaluation.json").read_text())["protocols"])
        assert "By modality: test" in (folder / "report.html").read_text()


@pytest.mark.parametrize("family", ["regression", "ordinal"])
def test_evaluating_again_gives_the_numbers_of_the_run(family: str, request: pytest.FixtureRequest):
    run = request.getfixturevalue(family)
    found = mmhf.evaluate(run, splits=["test"])["test"].metrics
    trained = json.loads((run / "metrics.json").read_text())
    assert found == pytest.approx({name: trained[f"test_{name}"] for name in found}, abs=1e-5)


@torch.no_grad()
def test_model_stock_pipeline_and_prediction_agree_on_numbers(regression: Path, pictures: Path, tmp_path: Path):
    served = mmhf.pipeline("image-classification", model=str(regression))
    model = AutoModelForImageClassification.from_pretrained(regression).eval()
    images = [decode_image(pictures / f"{number}.png") for number in range(3)]
    expected = model(**served.image_processor(images=images, return_tensors="pt")).logits[:, 0].tolist()
    assert all(0 < number < 5 for number in expected), "in words, not in deviations"
    rows = predicted(regression, pictures, tmp_path / "out.parquet")
    assert rows["predicted_words"].tolist() == pytest.approx(expected, abs=1e-5)
    stock = stock_pipeline("image-classification", model=model, image_processor=served.image_processor)
    answers = [stock(str(pictures / f"{number}.png"))[0] for number in range(3)]
    assert [each["label"] for each in answers] == ["words"] * 3
    assert [each["score"] for each in answers] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match="threshold: the model was trained on numbers"):
        predicted(regression, pictures, tmp_path / "no.parquet", threshold=0.5)


@torch.no_grad()
def test_model_stock_pipeline_and_prediction_agree_on_ordered_classes(ordinal: Path, pictures: Path, tmp_path: Path):
    config = config_of(ordinal)
    assert config["ordinal"] is True and list(config["id2label"].values()) == MOODS
    served = mmhf.pipeline("image-classification", model=str(ordinal))
    model = AutoModelForImageClassification.from_pretrained(ordinal).eval()
    images = [decode_image(pictures / f"{number}.png") for number in range(3)]
    chances = model(**served.image_processor(images=images, return_tensors="pt")).logits.double().softmax(dim=1)
    rows = predicted(ordinal, pictures, tmp_path / "out.parquet")
    np.testing.assert_allclose(rows[[f"probability_{name}" for name in MOODS]], chances, rtol=0, atol=1e-6)
    assert rows["label"].tolist() == [MOODS[at] for at in median_classes(chances)]
    for number, row in enumerate(chances.tolist()):
        found = {each["label"]: each["score"] for each in served(str(pictures / f"{number}.png"))}
        np.testing.assert_allclose([found[name] for name in MOODS], row, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_pipeline_of_pairs_and_the_server(pairs: dict[str, Path], pictures: Path, tmp_path: Path):
    for kind, run in pairs.items():
        rows = predicted(run, pictures, tmp_path / f"{kind}.parquet")
        served = mmhf.pipeline("image-text-classification", model=str(run))
        given = [{"image": str(pictures / row["image"]), "text": row["text"]} for _, row in rows.iterrows()]
        service = load_service(run)
        inputs = [
            Input(image=None, text=each["text"]).model_copy(update={"image": Path(each["image"]).read_bytes()})
            for each in given
        ]
        examples = [service.read(each, "inputs.0", Limits()) for each in inputs]
        answered = service.run(service.options(None, Generation()), examples)
        for (_, row), answer, from_server in zip(rows.iterrows(), served(given), answered, strict=True):
            if kind == "regression":
                assert answer == [{"label": "words", "score": pytest.approx(row["predicted_words"], abs=1e-5)}]
                assert from_server.numbers == {"words": pytest.approx(row["predicted_words"], abs=1e-5)}
                assert from_server.label is None and from_server.probabilities is None
            else:
                assert [each["label"] for each in answer if each["given"]] == [row["label"]]
                assert from_server.label == row["label"] and list(from_server.probabilities) == MOODS


@pytest.mark.slow
def test_training_goes_on_in_the_deviations_of_the_parent(regression: Path, ordinal: Path, train: Train):
    changes = {"init_from": str(regression), "stages": STAGES[:1]}
    few = {**SAMPLE, **KINDS["regression"], "limit": 20}
    child, parent = config_of(train("image-classification", "regression", **changes, data=few)), config_of(regression)
    assert (child["target_mean"], child["target_std"]) == (parent["target_mean"], parent["target_std"])
    fresh = train(
        "image-classification", "regression", **changes, data=few, model={"vision": VISION, "reset_head": True}
    )
    assert config_of(fresh)["target_mean"] != parent["target_mean"]
    with pytest.raises(InputError, match="unlike those of the data|its labels are"):
        train("image-classification", "regression", init_from=str(ordinal), stages=STAGES[:1])


@pytest.mark.slow
def test_several_numbers_released_with_a_card(train: Train, tmp_path: Path):
    drawings = read_sample("train").slice(0, 24).to_pylist()
    for number, drawing in enumerate(drawings):
        (tmp_path / f"{number}.png").write_bytes(drawing["image"]["bytes"])
    table = {"image": [f"{number}.png" for number in range(24)], "year": np.arange(24) + 2000.5, "size": np.arange(24)}
    pd.DataFrame(table).to_csv(tmp_path / "t.csv", index=False)
    data = {"source": "table", "path": str(tmp_path / "t.csv"), "image_size": 32, "missing": ["n/a"]}
    data["regression"] = {"columns": ["year", "size"]}
    release = {"repo": str(tmp_path / "releases"), "version": "0.1"}
    train("image-classification", "regression", data=data, stages=STAGES[:1], release=release)
    card = (tmp_path / "releases" / "v0.1" / "README.md").read_text()
    assert "| mae |" in card and "By number, test" in card and "| year |" in card
    served = mmhf.pipeline(str(tmp_path / "releases" / "v0.1"))
    found = {each["label"]: each["score"] for each in served(str(tmp_path / "0.png"))}
    assert 1990 < found["year"] < 2040 and -20 < found["size"] < 50
    check_own_code(tmp_path / "releases" / "v0.1", served.model)


def check_own_code(release: Path, model: Any) -> None:
    """A release's own code gives what mmhf's does."""
    references = json.loads((release / "config.json").read_text())["auto_map"]
    config_class, model_class = (
        get_class_from_dynamic_module(references[name], str(release)) for name in ("AutoConfig", "AutoModel")
    )
    copy = model_class.from_pretrained(release, config=config_class.from_pretrained(release)).eval()
    assert type(copy).__module__.startswith("transformers_modules.")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(copy(pixel_values=pixels).logits, model(pixel_values=pixels).logits)


@pytest.mark.parametrize(("kind", "metric"), [("regression", "accuracy"), ("ordinal", "r2")])
def test_a_metric_that_the_kind_lacks_is_named(kind: str, metric: str, train: Train):
    with pytest.raises(InputError, match=f"training.metric_for_best_model: '{metric}' is not measured"):
        train("image-classification", kind, training={"metric_for_best_model": metric})


def test_equal_numbers_in_each_row_are_nothing_to_learn(train: Train, pictures: Path):
    frame = pd.read_csv(pictures / "in.csv").assign(age=0.1)
    frame = pd.concat([frame] * 6)
    frame.to_csv(pictures / "same.csv", index=False)
    data = {"source": "table", "path": str(pictures / "same.csv"), "columns": {"label": "age"}, "regression": {}}
    with pytest.raises(InputError, match="age is 0.1 in each training row; there is nothing to learn"):
        train("image-classification", "regression", data={**data, "image_size": 32})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regression", "ordinal", "multi_label"])
def test_the_recipe_that_comes_with_it_trains(name: str, tmp_path: Path):
    changes = ["model.vision.backbone=timm/test_efficientnet", "model.vision.pretrained=false", "data.image_size=32"]
    changes += [
        "data.limit=30",
        "stages.0.epochs=1",
        "training.per_device_train_batch_size=10",
        f"training.output_dir={tmp_path / 'run'}",
        "release=null",
    ]
    if name != "ordinal":
        changes.append("stages.1.epochs=1")
    run = mmhf.train(f"quickstart/{name}", [*changes, "training.report_to=none"])
    metrics = json.loads((Path(run.folder) / "metrics.json").read_text())
    assert "test_map" in metrics if name == "multi_label" else metrics["test_mae"] > 0
