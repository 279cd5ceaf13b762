"""Baselines on the whole road: measured beside the model, kept with it, shown again, and left out with a reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import mmhf
from mmhf.data.images import decode_image
from mmhf.evaluation.baselines import CPU_SECONDS, STRENGTHS
from mmhf.features.stage import StageFeatures
from mmhf.files import LINEAGE_FILE
from mmhf.models.backbones import load_encoder, load_encoder_config
from mmhf.recipe import load_recipe, recipe_from_dict
from mmhf.tasks import frozen_features as module
from mmhf.tasks import task_of
from mmhf.training.arguments import build_stage_plan, training_arguments

LITE0 = {"backbone": "pypi/efficientnet-lite0", "pooling": "avg"}
MINILM = {"backbone": "pypi/all-minilm-l6-v2", "pooling": "mean"}
SAMPLE = {"source": "sample", "image_size": 32, "limit": 90, "find_duplicates": "never"}
TRAINING = {"per_device_train_batch_size": 16, "max_steps": 2, "learning_rate": 1e-3}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "image-classification": {
        "model": {"vision": LITE0},
        "data": {**SAMPLE, "augment": {"horizontal_flip": 0.5}},
        "stages": [{"name": "head", "epochs": 3, "train": ["head"]}, {"name": "all", "steps": 1, "train": "all"}],
    },
    "image-text-classification": {
        "model": {"vision": LITE0, "text": MINILM, "embedding_dim": 16},
        "data": {**SAMPLE, "max_length": 16},
    },
    "contrastive": {
        "model": {"vision": LITE0, "text": MINILM, "embedding_dim": 16},
        "data": {**SAMPLE, "max_length": 16},
        "contrastive": {"batch_size": 16},
    },
}
EXPECTED = {
    "image-classification": {"logistic regression": "accuracy"},
    "image-text-classification": {
        "logistic regression": "accuracy",
        "logistic regression on products": "accuracy",
    },
    "contrastive": {"frozen projections": "mean_recall"},
}


def recipe_of(task: str, folder: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"task": task, **RECIPES[task], **changes}
    training = {**TRAINING, "output_dir": str(folder / task)}
    if "stages" in values:
        training.pop("max_steps")
    return {**values, "training": training}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, mmhf.Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {task: mmhf.train(recipe_of(task, folder)) for task in RECIPES}


@pytest.mark.slow
@pytest.mark.parametrize("task", RECIPES)
def test_baselines_stand_beside_the_model_and_are_shown_again(
    runs: dict[str, mmhf.Run], task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(runs[task].folder)
    kept = json.loads((folder / "evaluation.json").read_text())["baselines"]
    assert kept.keys() == {"validation", "test"}
    for named in kept.values():
        assert named.keys() == EXPECTED[task].keys()
        assert all(metric in named[name] and named[name][CPU_SECONDS] >= 0 for name, metric in EXPECTED[task].items())
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert all(name in report for name in EXPECTED[task]) and "CPU time without training a network" in report
    assert not any("logistic" in name for name in json.loads((folder / "metrics.json").read_text()))
    again = mmhf.evaluate(runs[task], splits=["test"])
    assert again["test"].baselines == kept["test"]
    others = mmhf.evaluate(runs[task], splits=["test"], overrides=["data.limit=30"])
    assert others["test"].baselines == {}  # other rows
    trained_on = json.loads((folder / LINEAGE_FILE).read_text())["trained_on"]
    assert {"cpu", "threads", "torch", "transformers"} <= trained_on.keys()


@pytest.mark.slow
def test_the_features_are_those_of_the_pretrained_encoder_and_the_numbers_scikit_learns(
    runs: dict[str, mmhf.Run], tmp_path: Path
) -> None:
    """Although the images were flipped and the encoder trained in the second stage."""
    task = task_of(recipe_from_dict(recipe_of("image-classification", tmp_path), name="x").recipe)
    data = task.load_data()
    config = load_encoder_config(LITE0["backbone"])
    encoder = load_encoder(LITE0["backbone"], config, pretrained=True).eval()
    processor: Any = task.build_processor(data)

    def features(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows: Any = data.splits[split]
        images = [decode_image(image) for image in rows["image"][:]]
        with torch.no_grad():
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            found = encoder(pixel_values=pixels, do_pooling=True).pooler_output
        return found.double().numpy(), np.asarray(rows["label"][:])

    (train, labels), (validation, own), (test, wanted) = (features(split) for split in ("train", "validation", "test"))
    scale = StandardScaler().fit(train)
    tried = []
    for class_weight in (None, "balanced"):
        for strength in STRENGTHS:
            found = LogisticRegression(C=strength, class_weight=class_weight, max_iter=5000)
            found.fit(scale.transform(train), labels)
            right = [
                float((found.predict(scale.transform(x)) == y).mean()) for x, y in ((validation, own), (test, wanted))
            ]
            tried.append(right)
    on_validation, on_test = max(tried, key=lambda each: each[0])
    kept = json.loads((Path(runs["image-classification"].folder) / "evaluation.json").read_text())["baselines"]
    measured = [kept[split]["logistic regression"]["accuracy"] for split in ("validation", "test")]
    assert measured == pytest.approx([on_validation, on_test], abs=0.03)  # batches of another size round otherwise


def collected(values: Mapping[str, Any], tmp_path: Path) -> module.FrozenFeatures:
    resolved = recipe_from_dict(values, name="x")
    task = task_of(resolved.recipe)
    data = task.load_data()
    args = training_arguments(resolved.recipe, "x", has_validation=True)
    processor = task.build_processor(data)
    model = task.build_model(data, processor=processor)
    plan = build_stage_plan(model, resolved.recipe, args, task.num_train_rows(data))
    args.max_steps, args.output_dir = plan.num_steps, str(tmp_path)
    trainer = task.make_trainer(data, plan=plan, args=args, processor=processor)
    before = torch.get_rng_state()
    found = module.frozen_features(task, trainer, data)
    assert torch.equal(torch.get_rng_state(), before)  # what is measured on the side changes no run
    return found


@pytest.mark.slow
def test_features_that_would_cost_too_much_are_left_out_and_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = {"name": "all", "steps": 2, "train": "all"}
    values = recipe_of("image-classification", tmp_path, stages=[everything], cache="off")
    cheap = collected(values, tmp_path)
    assert cheap.splits.keys() == {"train", "validation", "test"} and cheap.seconds > 0
    assert len(cheap.splits["train"].images) == 90 and cheap.splits["train"].images.shape[1] == 1280
    monkeypatch.setattr(module, "_CHEAP_SECONDS", 0.0)
    dear = collected(values, tmp_path)
    assert not dear.splits and "more than 3% of the run" in dear.why_not
    longer = recipe_of("image-classification", tmp_path, stages=[{**everything, "steps": 2000}], cache="off")
    assert collected(longer, tmp_path).splits  # 3 % of much is enough


@pytest.mark.slow
def test_only_what_neither_the_store_has_nor_the_run_will_store_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHEAP_SECONDS", 0.0)
    monkeypatch.setattr(module, "_SHARE", 0.0)
    head = {"name": "head", "epochs": 3, "train": ["head"]}
    everything = {"name": "all", "steps": 1, "train": "all"}
    model = {"vision": {"backbone": "timm/test_efficientnet", "pretrained": False}}

    def found(stages: list[dict[str, Any]], store: str, **evaluation: Any) -> module.FrozenFeatures:
        changes: dict[str, Any] = {
            "stages": stages,
            "evaluation": evaluation,
            "cache": {"folder": str(tmp_path / store)},
        }
        changes |= {"model": model, "init_from": "a release"}
        torch.manual_seed(0)  # always the same encoder
        return collected(recipe_of("image-classification", tmp_path, **changes), tmp_path)

    assert found([head], "a").splits  # frozen throughout: the run's own evaluations store all of it
    assert found([head, everything], "b", splits=["validation"]).splits  # the first stage evaluates it
    missing = found([head, everything], "c", splits=["test"])
    assert not missing.splits and missing.why_not.startswith("90 features are missing")
    assert "\n" not in missing.why_not and "evaluation.baselines: on" in missing.why_not
    assert found([head, everything], "c", splits=["test"], baselines="on").splits.keys() == {
        "train",
        "validation",
        "test",
    }
    assert found([head, everything], "c", splits=["test"]).splits  # now they are there


@pytest.mark.slow
def test_the_quickstarts_missing_features_are_worth_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the test split; only asked, not computed."""
    monkeypatch.setattr(StageFeatures, "enter", lambda self, index: None)
    values = load_recipe("quickstart/fusion", [f"cache.folder={tmp_path}"]).recipe.model_dump()
    assert collected(values, tmp_path).why_not == "they could not be stored"


@pytest.mark.parametrize(
    ("changes", "why_not"),
    [
        ({"evaluation": {"baselines": "off"}}, "off"),
        ({"evaluation": {"baselines": False}}, "off"),  # as recipes of earlier releases say it
        ({"model": {"vision": {"backbone": "timm/test_efficientnet", "pretrained": False}}}, "not pretrained"),
    ],
)
@pytest.mark.slow
def test_why_there_are_none(tmp_path: Path, changes: dict[str, Any], why_not: str) -> None:
    found = collected(recipe_of("image-classification", tmp_path, **changes), tmp_path)
    assert not found.splits and why_not in found.why_not


@pytest.mark.slow
def test_rows_whose_image_is_broken_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = recipe_of("image-classification", tmp_path)
    task = task_of(recipe_from_dict(values, name="x").recipe)
    load = type(task).load_data

    def with_a_broken_image(self: Any, **options: Any) -> Any:
        data = load(self, **options)
        rows: Any = data.splits["test"]
        broken = rows.map(
            lambda row, at: {"image": {"path": None, "bytes": b"\x89PNG broken"}} if at == 3 else {},
            with_indices=True,
        )
        return replace(data, splits={**data.splits, "test": broken})

    monkeypatch.setattr(type(task), "load_data", with_a_broken_image)
    found = collected(values, tmp_path)
    assert 3 not in found.splits["test"].rows and len(found.splits["test"].rows) == 89
