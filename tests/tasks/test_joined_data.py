"""Joined data sets on the road: shares of an epoch, numbers for each, the run of a recipe."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

import mmhf
from mmhf.data.caption_datasets import CaptionDataset
from mmhf.errors import InputError
from mmhf.recipe import recipe_from_dict
from mmhf.tasks import task_of
from mmhf.tasks.joined_data import training_captions, weights_by_dataset
from tests.small_data import picture, write_csv, write_images

VISION = {"backbone": "timm/test_efficientnet", "pretrained": False}
MODELS: dict[str, dict[str, Any]] = {
    "image-classification": {"vision": VISION, "head": {"hidden_dim": 8, "dropout": [0.2, 0.2]}},
    "contrastive": {
        "vision": {"patch_size": 16, "width": 16, "layers": 1, "heads": 2},
        "text": {"width": 16, "layers": 1, "heads": 2, "vocab_size": 300},
        "embedding_dim": 8,
    },
}
COLUMN = "extra.dataset"


def section(task: str = "contrastive", **values: Any) -> Any:
    members = {name: {"source": "table", "path": f"{name}.csv"} for name in ("few", "many")}
    data = {"source": "joined", "datasets": members, **values}
    return recipe_from_dict({"task": task, "data": data}, name="joined").recipe.data


def test_shares_hold_and_classes_count_within_each():
    rows = datasets.Dataset.from_dict({COLUMN: ["few"] * 10 + ["many"] * 90})
    of_class = np.where(np.arange(100) % 10 == 0, 9.0, 1.0)  # one row of ten counts as nine
    weights = weights_by_dataset(section(weights={"few": 3.0, "many": 1.0}), rows, of_class)
    assert weights is not None
    assert weights[:10].sum() / weights.sum() == pytest.approx(0.75)
    for part in (weights[:10], weights[10:]):
        assert part[::10].sum() / part.sum() == pytest.approx(0.5)
    assert weights_by_dataset(section(), rows) is None
    with pytest.raises(InputError, match="data.weights.few: the data set has no training row"):
        weights_by_dataset(section(weights={"few": 3.0, "many": 1.0}), rows.select(range(10, 100)))


@pytest.mark.parametrize("captions", ["sample", "all"])
def test_an_epoch_of_captions_has_each_data_set_by_its_share(captions: str):
    counts = [3] * 100 + [1, 2] * 450
    rows = datasets.Dataset.from_dict(
        {
            "captions": [[f"{number} {place}" for place in range(count)] for number, count in enumerate(counts)],
            COLUMN: ["few"] * 100 + ["many"] * 900,
            "image": [{"path": None, "bytes": b""}] * 1000,
        }
    )
    by_share = section(weights={"few": 1.0, "many": 1.0}, captions=captions)
    dataset = training_captions(by_share, rows, seed=0)
    assert isinstance(dataset, CaptionDataset)
    keys = list(dataset.epoch_sampler(0))
    images = dataset.places("image", np.array(keys))
    assert len(keys) == len(dataset)
    assert np.mean(images < 100) == pytest.approx(0.5, abs=0.05)
    if captions == "all":  # captions, not images, are drawn alike
        assert np.mean([counts[image] == 2 for image in images if image >= 100]) == pytest.approx(2 / 3, abs=0.05)
    else:  # an image that is drawn three times in an epoch shows three captions
        texts = dataset.places("text", np.array(keys))
        drawn = [len(set(texts[images == image])) for image, often in Counter(images.tolist()).items() if often >= 3]
        assert [number for number, often in zip(drawn, drawn, strict=True) if often < 3 and number > 3] == []
        assert max(drawn) == 3
    assert training_captions(section(captions=captions), rows, seed=0).weights is None  # type: ignore[union-attr]


def test_weights_and_sampling_by_the_same_column():
    members = {name: {"source": "table", "path": f"{name}.csv"} for name in "ab"}
    data = {"source": "joined", "datasets": members, "weights": {"a": 1.0, "b": 1.0}}
    recipe = {"task": "image-classification", "data": data, "sampling": {"by": "dataset"}}
    with pytest.raises(InputError, match="sampling.by: `data.weights` says how often"):
        recipe_from_dict(recipe, name="joined")


@pytest.mark.slow
def test_a_run_on_drawings_and_folders(tmp_path: Path):
    for number in range(24):
        folder = tmp_path / "photos" / ("flags", "objects")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(picture(number))
    members = {
        "drawings": {"source": "sample"},
        "photos": {"source": "image_folder", "path": str(tmp_path / "photos"), "split": {"test": 0.25}},
    }
    recipe = {
        "task": "image-classification",
        "model": {"vision": VISION, "head": {"hidden_dim": None, "dropout": [0, 0]}},
        "data": {"source": "joined", "datasets": members, "weights": {"drawings": 1, "photos": 1}, "image_size": 32},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 16,
            "max_steps": 3,
            "report_to": "none",
        },
    }
    recipe["data"]["find_duplicates"] = "never"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run = Path(mmhf.train(tmp_path / "recipe.yaml").folder)
    table = json.loads((run / "evaluation.json").read_text())["tables"]["test"]["By dataset"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert [row["group"] for row in table] == ["drawings", "photos"]
    right = sum(row["rows"] * row["accuracy"] for row in table)
    assert right == pytest.approx(sum(row["rows"] for row in table) * metrics["test_accuracy"])
    assert "dataset" in (run / "subgroups.csv").read_text()
    task: Any = task_of(recipe_from_dict(recipe, name="joined").recipe)
    data = task.load_data()
    drawn = task.torch_dataset(data, "train").weights
    names = np.array(data.splits["train"][COLUMN])
    assert drawn[names == "photos"].sum() == pytest.approx(drawn[names == "drawings"].sum())


@pytest.mark.slow
def test_the_recipe_on_the_embedded_drawings_trains_on_both_artists(tmp_path: Path):
    sizes = ["model.vision.backbone=timm/test_efficientnet", "model.vision.pretrained=false", "data.image_size=32"]
    sizes += ["data.limit=40", "stages.0.epochs=1", "stages.1.epochs=1", "data.find_duplicates=exact"]
    run = mmhf.train("quickstart/joined_data", [*sizes, "release=null", f"training.output_dir={tmp_path / 'run'}"])
    table = json.loads((Path(run.folder) / "evaluation.json").read_text())["tables"]["test"]["By artist"]
    assert {row["group"] for row in table} == {"noto", "fluent"}


class Stop(TrainerCallback):
    """Interrupts a run before its tenth step, the fourth of the second epoch."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 9:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("task", MODELS)
def test_a_run_that_stops_within_an_epoch_goes_on_with_the_same_draws(task: str, tmp_path: Path):
    members = {}
    for name, count in (("few", 6), ("many", 19)):
        rows = [
            {"file": image, "label": ("cat", "dog")[place % 2], "caption": f"{word} {place}"}
            for place, image in enumerate(write_images(tmp_path / name, count))
            for word in ("photo", "picture")
        ]
        label = {"captions": "caption"} if task == "contrastive" else {"label": "label", "text": None}
        columns = {"image": "file", **label}
        path = write_csv(tmp_path / name / "rows.csv", rows)
        members[name] = {"source": "table", "path": str(path), "columns": columns, "split": {"test": 0}}
    values: dict[str, Any] = {
        "task": task,
        "model": MODELS[task],
        "data": {"source": "joined", "datasets": members, "weights": {"few": 2.0, "many": 1.0}, "image_size": 32},
        "training": {"per_device_train_batch_size": 4 if task == "contrastive" else 8, "num_train_epochs": 3},
        "evaluation": {"splits": ["validation"]},
    }
    values["data"] |= {"augment": {"horizontal_flip": 0.5}, "find_duplicates": "never"}
    values["training"] |= {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 4, "eval_strategy": "no"}
    whole = mmhf.train(values, [f"training.output_dir={tmp_path / 'whole'}"])
    again = [f"training.output_dir={tmp_path / 'stopped'}"]
    with pytest.raises(KeyboardInterrupt):
        mmhf.train(values, again, callbacks=[Stop()])
    state = json.loads((tmp_path / "stopped" / "checkpoint-8" / "trainer_state.json").read_text())
    assert 1 < state["epoch"] < 2
    stopped = mmhf.train(values, again, resume=True)
    assert stopped.metrics == whole.metrics and "validation_loss" in whole.metrics
    weights = [load_file(run.folder / "model.safetensors") for run in (whole, stopped)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
