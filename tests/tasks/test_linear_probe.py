"""A head that starts from a linear probe is that regression, and a stopped run fits the same again or goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

import mmhf
from mmhf.cli import main
from mmhf.errors import InputError
from mmhf.evaluation.baselines import LinearProbe, best_probe
from mmhf.recipe import recipe_from_dict
from mmhf.sample_data import read_sample
from mmhf.tasks import linear_probe as module

HEAD = {"name": "head", "epochs": 2, "train": ["head"], "start": "linear_probe", "learning_rate": 1e-3}
STILL = {**HEAD, "epochs": 1, "learning_rate": 0.0}
VALUES: Mapping[str, Any] = {
    "task": "image-classification",
    "model": {
        "vision": {"backbone": "timm/test_efficientnet", "pretrained": False, "pooling": "avg"},
        "head": {"hidden_dim": None},
    },
    "evaluation": {"baselines": "off", "splits": ["test"]},
}


GROUPS = {"activities": 8, "food-drink": 13, "objects": 27}
"""Class → training images."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Drawings of three classes in folders, 48 to train on."""
    folder = tmp_path_factory.mktemp("drawings")
    for split, share in (("train", 1), ("validation", 2), ("test", 4)):
        drawings = read_sample(split).to_pylist()
        for group, count in GROUPS.items():
            place = folder / split / group
            place.mkdir(parents=True)
            chosen = [drawing for drawing in drawings if drawing["group"] == group][: count // share]
            for number, drawing in enumerate(chosen):
                (place / f"{number}.jpg").write_bytes(drawing["image"]["bytes"])
    return {"source": "image_folder", "path": str(folder), "image_size": 32, "find_duplicates": "never"}


Recipe = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(data: dict[str, Any]) -> Recipe:
    def write(
        folder: Path,
        stages: list[dict[str, Any]],
        *,
        training: Mapping[str, Any] | None = None,
        augment: dict[str, Any] | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        settings = {"output_dir": str(folder), "per_device_train_batch_size": 16, "seed": 3, **(training or {})}
        own = data if augment is None else {**data, "augment": augment}
        return {**VALUES, "data": own, "training": settings, "stages": stages, **changes}

    return write


def head(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    names = sorted(name for name in weights if name.startswith("head."))
    assert len(names) == 2
    return weights[names[1]].double(), weights[names[0]].double()


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": {"horizontal_flip": 0.5}, "ema": {"decay": 0.9}},
        {"loss": {"class_weights": [1.0, 3.0, 0.5], "logit_adjustment": 0.5}},
    ],
)
@pytest.mark.slow
def test_the_head_is_the_best_regression_on_the_stored_features(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Of both views of flipped images; averages begin with it; an adjusted loss changes the bias alone.

    It learns from no more rows than a regression does.
    """
    fitted: list[tuple[Any, LinearProbe]] = []

    def remembered(train: Any, validation: Any, names: Any, **options: Any) -> LinearProbe | None:
        probe = best_probe(train, validation, names, **options)
        assert probe is not None and validation is not None and options["metric"] == "f1_macro"
        fitted.append((train, probe))
        return probe

    monkeypatch.setattr(module, "best_probe", remembered)
    if "loss" in changes:
        monkeypatch.setattr(module, "learnt_rows", lambda count, width, classes: np.arange(0, count, 2))
    mmhf.train(recipe(tmp_path / "run", [STILL], training={"metric_for_best_model": "f1_macro"}, **changes))
    ((train, probe),) = fitted
    views = 2 if "ema" in changes else 1
    assert len(train.labels) == (96 if views == 2 else 24)
    assert views == 1 or not np.allclose(*np.split(train.features, 2))
    weight, bias = head(tmp_path / "run")
    if "loss" in changes:
        assert probe.weights == dict(enumerate(changes["loss"]["class_weights"]))
        counts = torch.tensor(list(GROUPS.values())).double()
        bias = bias + 0.5 * torch.log(counts / counts.sum())
    found = torch.log_softmax(torch.from_numpy(train.features).double() @ weight.T + bias, dim=1)
    np.testing.assert_allclose(found.exp().numpy(), np.exp(probe.logits(train.features, 3)), atol=2e-4)


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_weights(recipe: Recipe, tmp_path: Path) -> None:
    """Stopped before the stage's first checkpoint it fits again; after it, training goes on from there."""
    first = {"name": "first", "epochs": 1, "train": "all", "learning_rate": 1e-3}
    saved = {"save_strategy": "steps", "save_steps": 3}
    mmhf.train(recipe(tmp_path / "whole", [first, HEAD], training=saved))
    ends = []
    for stop in (4, 7):  # the first stage has 3 steps
        folder = tmp_path / f"stopped{stop}"
        values = recipe(folder, [first, HEAD], training=saved)
        with contextlib.suppress(KeyboardInterrupt):
            mmhf.train(values, callbacks=[Stop(stop)])
        assert not (folder / "metrics.json").exists()
        mmhf.train(values, resume=True)
        ends.append(folder)
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    for folder in ends:
        stopped = load_file(folder / "model.safetensors")
        assert all(torch.equal(whole[name], stopped[name]) for name in whole), folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {**VALUES["model"], "head": {"hidden_dim": 8}}}, "hidden_dim: null"),
        ({"stages": [{**HEAD, "train": "all"}]}, r"train: \[head\]"),
        ({"task": "image-captioning", "model": {}, "data": {"source": "sample"}}, "only image classifiers and dual"),
    ],
)
def test_other_stages_are_refused_by_the_recipe(
    recipe: Recipe, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recipe_from_dict({**recipe(tmp_path, [HEAD]), **changes}, name="x")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cache": "off"}, "cache: off"),
        ({"augment": {"rotation": 15}}, "change at random"),
    ],
)
def test_a_stage_without_stored_features_is_refused_in_plan_and_training(
    recipe: Recipe, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    values = recipe(tmp_path / "run", [HEAD], **changes)
    problems = [line for line in mmhf.plan(values).problems if "linear_probe" in line]
    assert len(problems) == 1 and why in problems[0]
    with pytest.raises(InputError, match=f"needs stored features.*{why}"):
        mmhf.train(values)


def test_the_plan_shows_it_and_a_stage_of_one_epoch_stores_its_features(recipe: Recipe, tmp_path: Path) -> None:
    found = mmhf.plan(recipe(tmp_path / "run", [STILL]))
    assert not found.problems and "start: the best linear fit to the stored features" in str(found)
    assert "vision (" in found.cached[0]


def test_a_range_test_of_such_a_stage_is_refused(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "probed.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path / "run", [HEAD])))
    assert main(["find-lr", str(path)]) == 2
    assert "--stage head: it starts from a linear probe" in capsys.readouterr().err
