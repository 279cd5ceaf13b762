"""Projections of a dual encoder that start as linear maps are these maps, and what they cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file

import mmhf
from mmhf.errors import InputError
from mmhf.evaluation.linear_maps import LinearMapsSearch, Pairs
from mmhf.recipe import load_recipe
from mmhf.tasks import contrastive, linear_probe, task_of

CHANGES = [
    "~model.vision",
    "~training.num_train_epochs",
    "model.vision={backbone: timm/test_efficientnet, pretrained: false, pooling: avg}",
    "model.projection_bias=true",
    "model.embedding_dim=40",
    "data.limit=64",
    "data.image_size=32",
    "contrastive.batch_size=null",
    "training.per_device_train_batch_size=16",
    "stages=[{name: still, epochs: 1, train: projections, start: linear_probe, learning_rate: 0.0}]",
]


def _normal(values: NDArray[Any]) -> NDArray[Any]:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.slow
def test_the_projections_are_the_best_linear_maps_of_the_stored_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of no more images than it takes into memory."""
    asked: list[tuple[Pairs, LinearMapsSearch]] = []

    def watched(train: Pairs, validation: Pairs | None, **options: Any) -> LinearMapsSearch:
        assert validation is not None and len(validation.owners)
        asked.append((train, LinearMapsSearch(train, validation, **options)))
        return asked[-1][1]

    monkeypatch.setattr(contrastive, "LinearMapsSearch", watched)
    monkeypatch.setattr(linear_probe, "MOST_ROWS", 60)
    mmhf.train("quickstart/dual_encoder", [*CHANGES, f"training.output_dir={tmp_path / 'run'}"])
    ((train, search),) = asked
    maps = search.best(40)
    assert maps.images.shape[1] <= 40
    assert len(train.images) == 60 and set(train.owners) == set(range(60)) and len(train.texts) == len(train.owners)
    saved = {name: tensor.numpy() for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items()}
    for name, features, axes, mean in (
        ("vision", train.images, maps.images, maps.image_mean),
        ("text", train.texts, maps.texts, maps.text_mean),
    ):
        weight, bias = saved[f"{name}_projection.weight"], saved[f"{name}_projection.bias"]
        found, expected = features @ weight.T + bias, (features - mean) @ axes
        np.testing.assert_allclose(found[:, axes.shape[1] :], 0, atol=1e-6)
        np.testing.assert_allclose(_normal(found[:, : axes.shape[1]]), _normal(expected), atol=1e-3)
        assert np.sqrt((weight[: axes.shape[1]] ** 2).mean()) == pytest.approx(weight.shape[1] ** -0.5, rel=1e-4)


def test_a_start_and_the_baseline_of_the_same_features_share_a_search() -> None:
    task: Any = task_of(load_recipe("quickstart/dual_encoder", CHANGES).recipe)
    rng = np.random.default_rng(0)
    first, other = (Pairs(rng.normal(size=(50, 60)), rng.normal(size=(50, 45)), np.arange(50)) for _ in range(2))
    found = task.search_linear_maps(first, None)
    again = Pairs(*(each.copy() for each in first))
    assert task.search_linear_maps(again, None) is found
    assert task.search_linear_maps(other, None) is not found
    assert 0 < found.best(40).images.shape[1] <= 40, "as many as the embeddings have"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.projection_bias=false", "set `model.projection_bias: true`"),
        ("model.text.pooling=attention", "set another pooling than `attention`"),
        ("stages.0.train=all", "set the stage's `train: projections`"),
    ],
)
def test_other_stages_are_refused_by_the_recipe(change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe("quickstart/dual_encoder", [*CHANGES, change])


def test_a_stage_whose_features_are_not_stored_is_refused() -> None:
    found = mmhf.plan("quickstart/dual_encoder", [*CHANGES, "cache=off"])
    assert any("start: linear_probe needs stored features" in each for each in found.problems)
