"""The image classifier on the whole road: train, evaluate, predict, release, go on from the release."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

import mmhf
from mmhf.cli import main
from mmhf.data.images import decode_image
from mmhf.data.loading import LoadedData
from mmhf.inference import JobSettings, predict_table
from mmhf.models.image_classifier import BackboneForImageClassification
from mmhf.models.partition import Partition
from mmhf.recipe import load_recipe
from mmhf.sample_data import read_sample
from mmhf.tasks import task_of
from mmhf.tasks.image_classification import ImageClassification
from tests.cli.test_metrics_table import undefined_numbers

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = {
    "task": "image-classification",
    "model": {"vision": {"backbone": "timm/test_efficientnet", "pretrained": False}, "head": {"hidden_dim": 8}},
    "data": {"source": "sample", "image_size": 32, "limit": 24},
    "training": {"per_device_train_batch_size": 8, "logging_steps": 1, "report_to": "none"},
    "stages": [
        {"name": "head", "steps": 2, "train": ["head"], "learning_rate": 1e-2},
        {"name": "all", "steps": 2, "train": "all", "learning_rate": {"vision": 1e-3, "head": 1e-2}},
    ],
}


def write_recipe(folder: Path, name: str, **changes: Any) -> Path:
    values = {**TINY, **changes}
    values["training"] = {**TINY["training"], "output_dir": str(folder / name)}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `run` has been trained and released as `releases@v0.1`."""
    folder = tmp_path_factory.mktemp("image_classification")
    run("train", write_recipe(folder, "run", release={"repo": str(folder / "releases"), "version": "0.1"}))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings of the sample as files, in folders; one file is broken, one is no image."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, drawing in enumerate(read_sample("test").slice(0, 7).to_pylist()):
        path = folder / drawing["group"] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(drawing["image"]["bytes"])
    (folder / "broken.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    return folder


def image_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"), key=lambda path: path.relative_to(folder).as_posix())


def predictions(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def probabilities(row: dict[str, str], names: list[str]) -> list[float]:
    return [float(row[f"probability_{name}"]) for name in names]


@pytest.mark.slow
def test_training_leaves_a_run_folder(work):
    folder = work / "run"
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert not undefined_numbers(folder)
    assert {"validation_f1_macro", "test_f1_macro", "test_accuracy"} <= metrics.keys()
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert [entry["stage"] for entry in state["log_history"] if "loss" in entry] == ["head"] * 2 + ["all"] * 2
    labels = AutoModelForImageClassification.from_pretrained(folder).config.id2label
    assert list(labels.values()) == sorted(set(read_sample("train")["group"].to_pylist()))


@pytest.mark.slow
def test_head_stage_moves_the_head_alone(tmp_path):
    stages = [{"name": "head", "steps": 2, "train": ["head"], "learning_rate": 1e-2}]
    for name, steps in (("two", 2), ("four", 4)):
        run("train", write_recipe(tmp_path, name, stages=[{**stages[0], "steps": steps}]))
    two, four = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "four"))
    moved = {name for name in two if not torch.equal(two[name], four[name])}
    assert moved == {name for name in two if name.startswith("head.")} != set()


@pytest.mark.slow
def test_model_pipeline_and_prediction_of_a_folder_agree(work, pictures, tmp_path):
    model = BackboneForImageClassification.from_pretrained(work / "run").eval()
    processor = AutoImageProcessor.from_pretrained(work / "run")
    names = list(model.config.id2label.values())
    good = [path for path in image_files(pictures) if path.name != "broken.png"]
    with torch.no_grad():
        encoding = processor(images=[decode_image(path) for path in good], return_tensors="pt")
        expected = model(**encoding).logits.double().softmax(-1).numpy()

    output = tmp_path / "predictions.csv"
    run("predict", work / "releases", "--input", pictures, "--output", output, "--batch-size", 3)
    rows = predictions(output)
    assert [row["file_name"] for row in rows] == [
        path.relative_to(pictures).as_posix() for path in image_files(pictures)
    ]
    broken = [row for row in rows if row["error"]]
    assert [(row["file_name"], row["label"]) for row in broken] == [("broken.png", "")]
    rows = [row for row in rows if not row["error"]]
    np.testing.assert_allclose([probabilities(row, names) for row in rows], expected, rtol=0, atol=1e-6)
    assert [row["label"] for row in rows] == [names[index] for index in expected.argmax(-1)]

    served = mmhf.pipeline("image-classification", model=str(work / "run"))
    for path, row in zip(good, expected, strict=True):
        scores = {entry["label"]: entry["score"] for entry in served(str(path), top_k=len(names))}
        np.testing.assert_allclose([scores[name] for name in names], row, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["timm/test_efficientnet", "timm/test_vit"])
def test_rectangles_on_the_whole_road(backbone, pictures, tmp_path, monkeypatch):
    """Stored features of frozen layers, training, release, served and predicted: one size, one set of numbers."""
    read = []
    monkeypatch.setattr(
        "mmhf.models.tower.laid_out",
        lambda pixels, output: read.append(tuple(pixels.shape[-2:])) or pixels,
    )
    run(
        "train",
        write_recipe(
            tmp_path,
            "wide",
            model={"vision": {"backbone": backbone, "pretrained": False}},
            data={"source": "sample", "image_size": [32, 48], "limit": 24, "augment": {"horizontal_flip": 0.5}},
            stages=[{"name": "top", "epochs": 2, "train": ["head", "vision:last 1"], "learning_rate": 1e-2}],
            cache={"mode": "on"},
            release={"repo": str(tmp_path / "releases"), "version": "0.1"},
        ),
    )
    assert set(read) == {(32, 48)}
    output = tmp_path / "predictions.csv"
    run("predict", tmp_path / "releases", "--input", pictures, "--output", output)
    served = mmhf.pipeline("image-classification", model=str(tmp_path / "releases" / "v0.1"))
    rows = [row for row in predictions(output) if not row["error"]]
    assert rows and set(read) == {(32, 48)}
    for row in rows:
        scores = {entry["label"]: entry["score"] for entry in served(str(pictures / row["file_name"]), top_k=100)}
        np.testing.assert_allclose(probabilities(row, list(scores)), list(scores.values()), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_prediction_of_a_table_needs_no_text(work, pictures, tmp_path):
    files = [path.relative_to(pictures).as_posix() for path in image_files(pictures)][:3]
    table = tmp_path / "input.csv"
    table.write_text("\n".join(["id,photo", *(f"{index},{name}" for index, name in enumerate(files))]) + "\n")
    settings = JobSettings(columns={"image": "photo"}, image_root=pictures, progress=False)
    summary = predict_table(work / "run", table, tmp_path / "output.csv", settings)
    assert (summary.rows, summary.unpredicted) == (3, int("broken.png" in files))
    assert [row["id"] for row in predictions(tmp_path / "output.csv")] == ["0", "1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--column", "text=caption"], "the model takes images alone"), (["--input", "EMPTY"], "has no images")],
)
def test_what_cannot_be_predicted_is_named(arguments, message, work, pictures, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    given = [str(empty) if argument == "EMPTY" else argument for argument in arguments]
    command = ["predict", str(work / "run"), "--input", str(pictures), "--output", str(tmp_path / "x.csv")]
    assert main([*command, *given]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_evaluation_gives_the_numbers_of_the_run(work, tmp_path):
    run("evaluate", work / "releases", "--split", "test", "--output", tmp_path / "check", "--batch-size", 8)
    again = json.loads((tmp_path / "check" / "metrics.json").read_text())
    trained = json.loads((work / "run" / "metrics.json").read_text())
    assert again and all(abs(again[name] - trained[name]) < 1e-5 for name in again)


@pytest.mark.slow
def test_training_goes_on_from_a_release(work, tmp_path):
    stages = [{"name": "head", "steps": 1, "train": ["head"], "learning_rate": 1e-3}]
    release = f"{work / 'releases'}@v0.1"
    run("train", write_recipe(tmp_path, "next", init_from=release, stages=stages))
    old, new = (load_file(folder / "model.safetensors") for folder in (work / "run", tmp_path / "next"))
    assert all(torch.equal(old[name], new[name]) for name in old if name.startswith("vision."))
    assert not torch.equal(old["head.4.weight"], new["head.4.weight"])
    assert torch.allclose(old["head.4.weight"], new["head.4.weight"], atol=0.01)


@pytest.mark.slow
def test_a_folder_of_classes_trains(pictures, tmp_path):
    root = tmp_path / "classes"
    for split in ("train", "validation"):
        for label, colour in (("rust", "brown"), ("training set", "green")):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(4):
                image = Image.new("RGB", (20, 20 + index), colour)
                image.putpixel((index, index), (index, len(split), 255))
                image.save(folder / f"{index}.png")
    data = {"source": "image_folder", "path": str(root), "image_size": 32, "find_duplicates": "never"}
    run("train", write_recipe(tmp_path, "folders", data=data))
    metrics = json.loads((tmp_path / "folders" / "metrics.json").read_text())
    assert "validation_f1_macro" in metrics
    config = BackboneForImageClassification.from_pretrained(tmp_path / "folders").config
    assert list(config.id2label.values()) == ["rust", "training set"]


@pytest.fixture
def stages_of() -> Callable[[str], list[tuple[str, list[str]]]]:
    def read(name: str) -> list[tuple[str, list[str]]]:
        recipe = load_recipe(RECIPES / f"{name}.yaml").recipe
        model = task_of(recipe).build_model(LoadedData({}, ["a", "b"]), device="meta")
        return [(stage.name, list(Partition.of(model).select(stage.train))) for stage in recipe.stages]

    return read


@pytest.mark.parametrize(
    ("name", "top"),
    [
        ("plant_disease/resnet50", ["vision.layer3", "vision.layer4"]),
        ("plant_disease/efficientnet_b0", [f"vision.features.{block}" for block in (6, 7, 8)]),
        ("plant_disease/mobilenetv3", [f"vision.features.{block}" for block in (9, 10, 11, 12)]),
        ("quickstart/image_classifier", ["vision.stages.5", "vision.stages.6", "vision.final"]),
    ],
)
def test_recipes_train_the_seeds_groups(name, top, stages_of):
    head, middle, everything = stages_of(name)
    assert head == ("head", ["head"])
    assert middle == ("top", [*top, "head"])
    assert everything[1][0] in ("vision.stem", "vision.features.0") and set(everything[1]) > set(middle[1])


def test_plant_disease_recipes_are_the_seeds():
    for name in ("efficientnet_b0", "mobilenetv3", "resnet50"):
        recipe = load_recipe(RECIPES / "plant_disease" / f"{name}.yaml").recipe
        assert isinstance(task_of(recipe), ImageClassification)
        assert [stage.epochs for stage in recipe.stages] == [5, 10, 10]
        assert [stage.learning_rate for stage in recipe.stages] == [1e-3, 1e-4, {"vision": 1e-5, "head": 5e-5}]
        assert {(stage.schedule, stage.min_lr) for stage in recipe.stages} == {("cosine", 1e-7)}
        assert (recipe.training["weight_decay"], recipe.training["max_grad_norm"]) == (1e-4, 1.0)
        assert (recipe.loss.label_smoothing, recipe.optimizer.name) == (0.1, "adamw")
        assert (recipe.unfreeze_on_plateau.metric, recipe.unfreeze_on_plateau.patience) == ("f1_macro", 5)
        steps = {key: value for key, value in recipe.data.augment.model_dump().items() if value and key != "fill"}
        assert len(steps.keys() - {"mix_probability"}) == 9
