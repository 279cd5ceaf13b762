"""Runs with stored features of frozen encoders end as runs that compute them, for every family."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from programs import run_together
from safetensors.torch import load_file

from tests.cli.test_captioner import RECIPE as CAPTIONER
from tests.cli.test_interruptions import Trainings, fingerprint
from tests.tasks.test_contrastive import RECIPE as DUAL_ENCODER

_VISION = {"backbone": "timm/test_efficientnet", "pretrained": False}
_SAVED = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
_TRAINING = {**_SAVED, "max_steps": None, "per_device_train_batch_size": 8, "optim": "sgd", "learning_rate": 0.05}

FUSION: dict[str, Any] = {
    "model": {"modalities": {"dropout": {"image": 0.0, "text": 0.0}}},
    "training": _TRAINING,
    "stages": [
        {"name": "head", "epochs": 3, "train": ["fusion", "head"]},
        {"name": "all", "epochs": 1, "train": "all", "batch_norm": "frozen"},
    ],
}
IMAGE: dict[str, Any] = {
    "task": "image-classification",
    "model": {"text": None, "embedding_dim": None, "fusion": None, "head": {"hidden_dim": 8}},
    "data": {"source": "sample", "path": None, "max_length": None, "limit": 24},
    "training": _TRAINING,
    "stages": [
        {"name": "head", "epochs": 3, "train": ["head"]},
        {"name": "all", "epochs": 1, "train": "all", "batch_norm": "frozen"},
    ],
}


def _captioner() -> dict[str, Any]:
    model = {**CAPTIONER["model"], "vision": {**_VISION, "features": "patches"}}
    del model["freeze_language"]
    return {
        **CAPTIONER,
        "model": {**model, "projector": {"kind": "mlp", "hidden_dims": []}},
        "training": {**_TRAINING, "per_device_eval_batch_size": 8},
        "stages": [
            {"name": "language", "epochs": 3, "train": ["projector", "language"]},
            {"name": "all", "epochs": 1, "train": "all", "batch_norm": "frozen"},
        ],
    }


def _dual_encoder() -> dict[str, Any]:
    return {
        **DUAL_ENCODER,
        "contrastive": {"batch_size": 16},
        "training": {**_TRAINING, "per_device_eval_batch_size": 8},
        "stages": [
            {"name": "projections", "epochs": 3, "train": ["projections", "temperature"]},
            {"name": "all", "epochs": 1, "train": "all", "batch_norm": "frozen"},
        ],
    }


# A family with a part for images and one for texts, whose batches are gathered, and one without.
_ONE_AND_TWO_PARTS = ["image classifier", "dual encoder"]


@pytest.fixture(params=["image classifier", "fusion", "captioner", "dual encoder"])
def write(request: Any, tiny_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write a family's recipe of two stages, whose run folder has the recipe's name and lies beside it."""

    def write_recipe(name: str, **training: Any) -> Path:
        training = {"output_dir": str(tmp_path / name), **training}
        if request.param in ("image classifier", "fusion"):
            changes = IMAGE if request.param == "image classifier" else FUSION
            return tiny_recipe({**changes, "training": {**changes["training"], **training}}, name=name)
        values = _captioner() if request.param == "captioner" else _dual_encoder()
        values = {**values, "training": {**values["training"], **training}}
        values["training"] = {key: value for key, value in values["training"].items() if value is not None}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return path

    return write_recipe


def with_cache(recipe: Path, choice: Mapping[str, Any] | str) -> Path:
    values = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**values, "cache": choice}, sort_keys=False))
    return recipe


def losses(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in history for key in ("loss", "eval_loss") if key in entry]


def check_equal(one: Path, other: Path, *, tolerance: float = 1e-5) -> None:
    assert losses(one) == pytest.approx(losses(other), rel=tolerance) and losses(one)
    weights, others = (load_file(run / "model.safetensors") for run in (one, other))
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=tolerance, atol=tolerance * 1e-1, msg=name)


def facts(run: Path) -> dict[str, str]:
    """What the report says of each cache."""
    page = html.unescape((run / "report.html").read_text())
    return dict(re.findall(r">stored (\w+ \w+)<.*?(\d[^<]*)<", page, flags=re.DOTALL))


@pytest.mark.slow
def test_stored_features_give_the_same_run(write, succeed, tmp_path):
    succeed("train", write("plain"), "cache=off")
    succeed("train", with_cache(write("cached"), {"mode": "on", "folder": str(tmp_path / "features")}))
    check_equal(tmp_path / "cached", tmp_path / "plain")
    found = facts(tmp_path / "cached")
    assert found and all(" computed in " in text for text in found.values()), found
    for folder in (tmp_path / "features").iterdir():
        assert list(folder.glob("*.features")), "every part was stored"
    succeed("train", with_cache(write("again"), {"mode": "on", "folder": str(tmp_path / "features")}))
    assert fingerprint(tmp_path / "again") == fingerprint(tmp_path / "cached")
    assert all(text.startswith("0 of ") for text in facts(tmp_path / "again").values())


@pytest.mark.slow
@pytest.mark.parametrize("write", _ONE_AND_TWO_PARTS, indirect=True)
def test_two_processes_share_a_store(write, succeed, tmp_path):
    folder = {"mode": "on", "folder": str(tmp_path / "features")}
    half = {"per_device_train_batch_size": 4}
    run_together("train", with_cache(write("plain", **half), "off"), num_processes=2)
    run_together("train", with_cache(write("cached", **half), folder), num_processes=2)
    check_equal(tmp_path / "cached", tmp_path / "plain")


@pytest.fixture(scope="module")
def trainings():
    trainings = Trainings()
    yield trainings
    trainings.close()


@pytest.mark.slow
@pytest.mark.parametrize("write", _ONE_AND_TWO_PARTS, indirect=True)
def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(write, trainings, tmp_path):
    def recipe(name: str) -> Path:
        return with_cache(write(name), {"mode": "on", "folder": str(tmp_path / f"features of {name}")})

    assert trainings.run(recipe("whole")) == 0, (tmp_path / "whole.log").read_text()
    killed = recipe("killed")
    for moment in (("save", 2), ("save", 6)):  # the first within the epoch that stores
        code = trainings.run(killed, lambda kind, step, at=moment: 0.002 if (kind, step) == at else None)
        assert code == -9, (tmp_path / "killed.log").read_text()
    assert trainings.run(killed) == 0, (tmp_path / "killed.log").read_text()
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")
