"""Views of an image on the whole road: trained, evaluated, released, served and predicted with the same average."""

from __future__ import annotations

import mmhf  # (first: it makes torchvision importable beside a CPU build of torch)

import json  # isort: skip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForImageClassification
from transformers import pipeline as stock_pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from mmhf.data.images import decode_image
from mmhf.errors import InputError
from mmhf.inference import JobSettings, predict_table
from mmhf.inference.serving.limits import Limits
from mmhf.inference.serving.schemas import Generation, Input
from mmhf.inference.serving.services import load_service
from mmhf.sample_data import read_sample

VISION = {"backbone": "timm/test_efficientnet", "pretrained": False}
FLIP = {"horizontal_flip": True, "vertical_flip": False, "center_crops": []}
TRAINING = {"per_device_train_batch_size": 8, "logging_steps": 1, "report_to": "none"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose encoder's features are stored, with a temperature fitted on the averages."""
    recipe = {
        "task": "image-classification",
        "model": {"vision": VISION, "head": {"hidden_dim": None}},
        "data": {"source": "sample", "image_size": 32, "limit": 48},
        "evaluation": {"views": {"horizontal_flip": True}, "calibrate": True},
        "cache": "on",
        "stages": [{"name": "head", "steps": 6, "train": ["head"], "learning_rate": 0.5}],
        "training": {**TRAINING, "output_dir": str(tmp_path_factory.mktemp("views") / "run")},
    }
    return mmhf.train(recipe).folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, drawing in enumerate(read_sample("test").slice(0, 4).to_pylist()):
        (folder / f"{number}.png").write_bytes(drawing["image"]["bytes"])
    pd.DataFrame({"image": [f"{number}.png" for number in range(4)]}).to_csv(folder / "in.csv", index=False)
    return folder


def probabilities(run: Path, pictures: Path, output: Path, **options: Any) -> np.ndarray:
    settings = JobSettings(progress=False, device="cpu")
    predict_table(run, pictures / "in.csv", output, settings, **options)
    rows = pd.read_parquet(output)
    return rows[[name for name in rows.columns if name.startswith("probability_")]].to_numpy()


@torch.no_grad()
def test_predict_and_stock_pipeline_equal_the_average_by_hand(run: Path, pictures: Path, tmp_path: Path):
    model = AutoModelForImageClassification.from_pretrained(run).eval()
    assert model.config.views == FLIP and model.config.calibration_temperature != 1
    served = mmhf.pipeline("image-classification", model=str(run))
    paths = [str(pictures / f"{number}.png") for number in range(4)]
    images = [decode_image(path) for path in paths]
    pixels = served.image_processor(images=images, return_tensors="pt")["pixel_values"]
    temperature = model.config.calibration_temperature
    heads = [model.head(model.image_features(view)) for view in (pixels, pixels.flip(-1))]
    mean = torch.stack([head.double().softmax(dim=1) for head in heads]).mean(dim=0)
    expected = ((mean.log() / temperature).softmax(dim=1)).numpy()
    found = probabilities(run, pictures, tmp_path / "own.parquet")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    stock = stock_pipeline("image-classification", model=model, image_processor=served.image_processor)
    names = list(model.config.id2label.values())
    for path, row in zip(paths, expected, strict=True):
        scores = {each["label"]: each["score"] for each in stock(path, top_k=len(names))}
        np.testing.assert_allclose([scores[name] for name in names], row, rtol=0, atol=1e-5)
    single = torch.softmax(heads[0].double() / temperature, dim=1).numpy()
    off = probabilities(run, pictures, tmp_path / "off.parquet", views="off")
    np.testing.assert_allclose(off, single, rtol=0, atol=1e-5)
    assert np.abs(found - single).max() > 1e-5
    given = probabilities(run, pictures, tmp_path / "given.parquet", views="{horizontal_flip: true}")
    np.testing.assert_array_equal(given, found)


@torch.no_grad()
def test_a_release_averages_without_mmhf_and_behind_the_server(run: Path, pictures: Path, tmp_path: Path):
    release = mmhf.Run(run).release(str(tmp_path / "releases"), "0.1")
    expected = probabilities(run, pictures, tmp_path / "own.parquet")
    references = json.loads((Path(release) / "config.json").read_text())["auto_map"]
    config, own = (get_class_from_dynamic_module(references[name], release) for name in ("AutoConfig", "AutoModel"))
    assert own.__module__.startswith("transformers_modules.")
    model = own.from_pretrained(release, config=config.from_pretrained(release)).eval()
    processor = mmhf.pipeline("image-classification", model=release).image_processor
    contents = [(pictures / f"{number}.png").read_bytes() for number in range(4)]
    pixels = processor(images=[decode_image(each) for each in contents], return_tensors="pt")
    np.testing.assert_allclose(model(**pixels).logits.double().softmax(dim=1), expected, rtol=0, atol=1e-5)
    service = load_service(Path(release))
    inputs = [Input(image=None, text=None).model_copy(update={"image": each}) for each in contents]
    examples = [service.read(each, "inputs.0", Limits()) for each in inputs]
    answered = service.run(service.options(None, Generation()), examples)
    found = [list(each.probabilities.values()) for each in answered]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_evaluating_again_gives_the_numbers_of_the_run_with_and_without_views(run: Path, tmp_path: Path):
    trained = json.loads((run / "metrics.json").read_text())
    measured = mmhf.evaluate(run, splits=["test"], output=tmp_path / "again")["test"]
    assert measured.metrics == pytest.approx({name: trained[f"test_{name}"] for name in measured.metrics}, abs=1e-5)
    single = mmhf.evaluate(run, splits=["test"], views="off")["test"]
    assert single.views is None and single.metrics["nll"] != pytest.approx(measured.metrics["nll"], abs=1e-6)
    beside = measured.views.one_view
    assert beside == pytest.approx({name: single.metrics[name] for name in beside}, abs=1e-5)


def test_numbers_say_what_they_are_means_of(run: Path):
    details = json.loads((run / "evaluation.json").read_text())
    assert "mean of 2 views of each image (as it is, flipped left to right)" in details["protocols"]["accuracy"]
    assert details["tables"]["test"]["Without views"][0].keys() >= {"accuracy", "loss"}
    page = (run / "report.html").read_text()
    assert "Views: test" in page and "Mean of 2 views" in page
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    final = next(entry for entry in history if "test_accuracy" in entry)
    assert final["test_accuracy"] == json.loads((run / "metrics.json").read_text())["test_accuracy"]


def test_what_cannot_be_averaged_is_refused(run: Path, pictures: Path, tmp_path: Path):
    for views, said in (
        ({"horizontal_flop": True}, "views: horizontal_flop: unknown key"),
        ({"center_crops": [1.5]}, "views: center_crops.0: "),
        ({}, "name a view beside the image as it is"),
        ("often", "expected off, or names of views"),
    ):
        with pytest.raises(InputError, match=said):
            probabilities(run, pictures, tmp_path / "no.parquet", views=views)


@pytest.mark.slow
def test_pairs_are_evaluated_with_modalities_of_one_view(tiny_recipe, tmp_path: Path):
    views = {"evaluation": {"views": {"horizontal_flip": True, "center_crops": [0.75]}}}
    folder = mmhf.train(tiny_recipe(views)).folder
    config = json.loads((folder / "config.json").read_text())
    assert config["views"] == {"horizontal_flip": True, "vertical_flip": False, "center_crops": [0.75]}
    trained = json.loads((folder / "metrics.json").read_text())
    again = mmhf.evaluate(folder, splits=["validation"])["validation"].metrics
    assert again == pytest.approx({name: trained[f"validation_{name}"] for name in again}, abs=1e-5)
    child = tiny_recipe({"init_from": str(folder), "training": {"output_dir": str(tmp_path / "child")}}, name="child")
    assert json.loads((mmhf.train(child).folder / "config.json").read_text())["views"] is None
    masked = {**views, "model": {"modalities": {"mask": "image"}}}
    with pytest.raises(InputError, match="evaluation.views: `model.modalities.mask: image` hides the images"):
        mmhf.plan(tiny_recipe(masked, name="masked"))
