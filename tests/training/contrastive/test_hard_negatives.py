"""Hard negatives: found as by hand, put into the same step, the same after a resumption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from transformers import TrainerCallback

from mmhf.conventions import IGNORED_IMAGE
from mmhf.data.samplers import EpochSampler
from mmhf.errors import InputError
from mmhf.models.dual_encoder import DualEncoderModel
from mmhf.recipe import recipe_from_dict
from mmhf.recipe.dual_encoder_recipe import HardNegativesSection
from mmhf.training import hard_negatives
from mmhf.training.hard_negatives import HardNegatives, TrainingPairs, find_hard_negatives
from mmhf.training.stages import Stage

Make = Callable[..., DualEncoderModel]


def random_pairs(count: int, seed: int = 0) -> TrainingPairs:
    """Pairs whose texts are near their images; some images and captions are there twice, some are broken."""
    generator = torch.Generator().manual_seed(seed)
    images = normalize(torch.randn(count, 6, generator=generator), dim=1)
    texts = normalize(images + 0.6 * torch.randn(count, 6, generator=generator), dim=1)
    numbers = torch.randint(0, count * 2 // 3, (2, count), generator=generator)
    numbers[0, ::11] = IGNORED_IMAGE
    return TrainingPairs(images, texts, *numbers)


def by_hand(pairs: TrainingPairs, count: int, below_own: float | None) -> NDArray[np.int64]:
    images, texts, index, captions = (each.numpy() for each in pairs)
    found = np.full((len(images), count), -1)
    for row in range(len(images)):
        scores = (texts @ images[row] + images @ texts[row]) / 2
        own = images[row] @ texts[row]
        allowed = [
            other
            for other in np.argsort(-scores)
            if index[other] != index[row]
            and captions[other] != captions[row]
            and IGNORED_IMAGE not in (index[other], index[row])
            and (below_own is None or scores[other] <= own - (1 - below_own) * abs(own))
        ]
        found[row, : len(allowed[:count])] = allowed[:count]
    return found


@pytest.mark.parametrize("below_own", [None, 0.95, 0.5])
@pytest.mark.parametrize("rows_at_once", [7, 1024])
def test_neighbours_are_those_of_a_search_by_hand(
    monkeypatch: pytest.MonkeyPatch, below_own: float | None, rows_at_once: int
) -> None:
    monkeypatch.setattr(hard_negatives, "_MOST_ROWS_AT_ONCE", rows_at_once)
    pairs = random_pairs(60)
    found = find_hard_negatives(pairs, 5, below_own=below_own)
    assert (found == by_hand(pairs, 5, below_own)).all()
    assert (found >= 0).any() and (found[::11] == -1).all()
    few = TrainingPairs(*(each[:3] for each in pairs))
    assert find_hard_negatives(few, 5, below_own=below_own).shape == (3, 5)


def test_a_step_holds_neighbours_and_an_epoch_every_row(tmp_path: Path) -> None:
    pairs = random_pairs(90)
    asked: list[int] = []

    def embed(rows: NDArray[np.int64], epoch: int) -> TrainingPairs:
        assert sorted(rows.tolist()) == list(range(90))
        asked.append(epoch)
        return pairs

    section = HardNegativesSection(per_sample=2, first_epoch=1, every_epochs=2)
    negatives, sampler = HardNegatives(section, embed), EpochSampler(90, seed=3)
    plain = sampler.epoch_rows(0)[0], sampler.epoch_rows(1)[0]
    negatives.arrange(sampler, epoch=0, taken=0, stage=0, step_samples=10)
    assert (sampler.epoch_rows(0)[0] == plain[0]).all() and not asked
    negatives.arrange(sampler, epoch=1, taken=0, stage=0, step_samples=10)
    order = sampler.epoch_rows(1)[0]
    assert sorted(order) == list(range(90)) and asked == [1]
    neighbours = find_hard_negatives(pairs, 16, below_own=0.95)

    def beside(order: NDArray[np.int64]) -> int:
        step_of = np.empty(90, dtype=int)
        step_of[order] = np.arange(90) // 10
        return sum((step_of[near[near >= 0][:2]] == step_of[row]).any() for row, near in enumerate(neighbours))

    assert beside(order) > 2 * beside(plain[1])
    # A stage begins when 40 samples are done: they stay, and what is left is put in order anew.
    negatives.arrange(sampler, epoch=1, taken=40, stage=1, step_samples=10)
    after = sampler.epoch_rows(1)[0]
    assert (after[:40] == order[:40]).all() and sorted(after) == list(range(90)) and asked == [1, 1]
    # A checkpoint says the rest, without looking again.
    negatives.save(tmp_path)
    others, other_sampler = HardNegatives(section, embed), EpochSampler(90, seed=3)
    others.load(tmp_path)
    others.arrange(other_sampler, epoch=1, taken=60, stage=1, step_samples=10)
    assert (other_sampler.epoch_rows(1)[0] == after).all() and asked == [1, 1]
    for each, own in ((negatives, sampler), (others, other_sampler)):
        each.arrange(own, epoch=2, taken=0, stage=1, step_samples=10)
    assert (sampler.epoch_rows(2)[0] == other_sampler.epoch_rows(2)[0]).all() and asked == [1, 1]
    negatives.arrange(sampler, epoch=3, taken=0, stage=1, step_samples=10)
    assert asked == [1, 1, 3]
    negatives.load(None)
    negatives.arrange(sampler, epoch=1, taken=0, stage=0, step_samples=10)
    assert (sampler.epoch_rows(1)[0] == order).all()


@pytest.mark.parametrize("stop_at", [*(pytest.param(step, marks=pytest.mark.slow) for step in (1, 3, 4)), 5])
def test_a_run_resumes_bit_by_bit(
    tiny_model: Make, rows_of, trainer_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Three steps an epoch; the first stage ends behind the first step of the second epoch."""
    mined: list[int] = []
    find = HardNegatives._mine
    monkeypatch.setattr(
        HardNegatives, "_mine", lambda self, rows, epoch: mined.append(epoch) or find(self, rows, epoch)
    )
    stages = [
        Stage(name="text", steps=4, train=["text", "projections"], learning_rate=0.1),
        Stage(name="all", steps=6, learning_rate=0.1),
    ]
    options: dict[str, Any] = {
        "stages": stages,
        "batch_size": 16,
        "hard_negatives": {"first_epoch": 0, "below_own": None, "every_epochs": 2},
        "save_strategy": "steps",
        "save_steps": 1,
    }

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            control.should_training_stop = state.global_step >= stop_at

    whole = trainer_of(tiny_model(dropout=0.2), rows_of(48), tmp_path / "whole", **options)
    whole.train()
    assert mined == [0, 1, 3]
    trainer_of(tiny_model(dropout=0.2), rows_of(48), tmp_path / "cut", callbacks=[Stop()], **options).train()
    mined.clear()
    resumed = trainer_of(tiny_model(dropout=0.2), rows_of(48), tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{stop_at}"))
    assert mined == ([3] if stop_at == 5 else [1, 3])
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    one, other = ([each["loss"] for each in run.state.log_history if "loss" in each] for run in (whole, resumed))
    assert one == other


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"contrastive": {"batch_size": 4, "hard_negatives": {"per_sample": 4}}},
            "per_sample: leaves no room",
        ),
        ({"data": {"source": "webdataset", "train": "x.tar"}}, "hard_negatives: are looked for in all rows"),
        ({"training": {"train_sampling_strategy": "group_by_length"}}, "hard_negatives: and `training.train_samp"),
        (
            {
                "data": {
                    "source": "joined",
                    "datasets": {name: {"source": "table", "path": f"{name}.csv"} for name in "ab"},
                    "weights": {"a": 1.0, "b": 1.0},
                }
            },
            "hard_negatives: need each row once an epoch",
        ),
    ],
)
def test_what_does_not_go_together_is_named(changes: dict[str, Any], said: str) -> None:
    recipe = {"task": "contrastive", "data": {"source": "sample"}, "contrastive": {"hard_negatives": {}}, **changes}
    with pytest.raises(InputError, match=said):
        recipe_from_dict(recipe, name="hard")
