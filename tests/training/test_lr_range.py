"""The range test on a model whose good rates are known, and its rules for choosing on curves made by hand."""

import datasets
import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from mmhf.data.datasets import RowDataset
from mmhf.errors import InputError
from mmhf.training.lr_range import (
    RangeTest,
    RangeTestTrainer,
    range_test_arguments,
    range_test_plan,
    run_range_test,
)
from mmhf.training.stages import Stage, StagePlan


def one_stage_plan(model, **stage):
    return StagePlan.build(model, [Stage(name="try", epochs=1.0, **stage)], steps_per_epoch=6)


def test_rates_grow_by_one_factor_and_groups_keep_their_ratios(tiny_model):
    plan = one_stage_plan(tiny_model, train=["head", "body.1"], learning_rate={"head": 2e-3, "body": 5e-4}, warmup=3)
    tried = range_test_plan(plan, lowest=1e-6, highest=1e-1, num_steps=51)
    heads = np.array([tried.learning_rates(step)["head"] for step in range(51)])
    bodies = np.array([tried.learning_rates(step)["body.1"] for step in range(51)])
    assert heads[0] == pytest.approx(1e-6) and heads[-1] == pytest.approx(1e-1)
    np.testing.assert_allclose(heads[1:] / heads[:-1], (1e5) ** (1 / 50))
    np.testing.assert_allclose(heads / bodies, 4.0)
    assert tried.learning_rates(7)["body.0"] == 0.0
    assert tried.num_steps == 51


@pytest.mark.parametrize(
    "lowest, highest, num_steps, rate, message",
    [
        (1e-2, 1e-3, 50, 1e-3, "--from 0.01 --to 0.001: .* smaller one first"),
        (0.0, 1e-3, 50, 1e-3, "must be above 0"),
        (1e-5, 1e-3, 9, 1e-3, "--steps 9: a curve needs 10"),
        (1e-5, 1e-3, 50, 0.0, "stage 'try': all its learning rates are 0"),
    ],
)
def test_impossible_ranges_are_refused(tiny_model, lowest, highest, num_steps, rate, message):
    plan = one_stage_plan(tiny_model, learning_rate=rate)
    with pytest.raises(InputError, match=message):
        range_test_plan(plan, lowest=lowest, highest=highest, num_steps=num_steps)


def test_suggestions_on_a_known_curve_with_noise():
    # Falls fastest at 1e-3, is lowest at about 1e-1.2, then rises.
    rates = np.logspace(-6, 0, 200)
    decades = np.log10(rates)
    losses = 2.0 - 1.5 / (1 + np.exp(-4 * (decades + 3))) + np.exp(6 * (decades + 0.4))
    noisy = losses + np.random.default_rng(0).normal(0, 0.02, 200)
    found = RangeTest(rates, noisy, exploded=False).suggestions()
    assert 5e-4 < found["steepest descent"] < 2e-3
    lowest = rates[np.argmin(losses)]
    assert 0.3 * lowest / 10 < found["a tenth of the minimum"] < 3 * lowest / 10


def test_a_loss_that_only_rises_gives_no_suggestion():
    rates = np.logspace(-6, 0, 50)
    assert RangeTest(rates, np.linspace(1.0, 9.0, 50), exploded=True).suggestions() == {}


def test_noise_alone_gives_no_suggestion():
    rates = np.logspace(-6, 0, 100)
    for seed in range(20):
        losses = 0.69 + np.random.default_rng(seed).normal(0, 0.03, 100)
        assert RangeTest(rates, losses, exploded=False).suggestions() == {}


def test_an_explosion_does_not_move_the_minimum():
    rates = np.logspace(-6, 0, 100)
    calm = 2.0 + (np.log10(rates) + 2) ** 2 / 10
    exploded = np.where(rates > 0.2, 1e6, calm)
    found = [RangeTest(rates, losses, exploded=True).suggestions() for losses in (calm, exploded)]
    assert found[0]["a tenth of the minimum"] == pytest.approx(found[1]["a tenth of the minimum"], rel=0.3)


def test_smoothing_keeps_constants_and_does_not_shift():
    rates = np.logspace(-6, 0, 61)
    np.testing.assert_allclose(RangeTest(rates, np.full(61, 3.0), exploded=False).smoothed, 3.0)
    bump = np.exp(-0.5 * ((np.arange(61) - 30) / 4.0) ** 2)
    assert np.argmax(RangeTest(rates, bump, exploded=False).smoothed) == 30


@pytest.fixture
def range_trainer(tiny_model, tiny_data, collate, tmp_path):
    """Builds a trainer over the tiny data, whose three classes a linear model can nearly tell apart."""
    rows = datasets.Dataset.from_dict({"features": tiny_data.features.tolist(), "labels": tiny_data.labels.tolist()})

    def build(*, highest=10.0, num_steps=60, **arguments):
        arguments = {"per_device_train_batch_size": 16, "save_strategy": "steps", "save_steps": 1, **arguments}
        args = TrainingArguments(
            str(tmp_path / "recipe"), use_cpu=True, disable_tqdm=True, remove_unused_columns=False, **arguments
        )
        plan = range_test_plan(one_stage_plan(tiny_model), lowest=1e-6, highest=highest, num_steps=num_steps)
        return RangeTestTrainer(
            model=tiny_model,
            args=range_test_arguments(args, str(tmp_path / "scratch"), num_steps),
            plan=plan,
            train_dataset=RowDataset(rows),
            data_collator=collate,
        )

    return build


@pytest.mark.slow
def test_the_loss_of_a_real_run_falls_and_then_ends_the_test(range_trainer, tmp_path):
    trainer = range_trainer(highest=1e4, num_steps=120)
    measured = run_range_test(trainer)
    assert measured.exploded and 20 < len(measured.rates) < 120
    assert measured.smoothed.min() < 0.8 * measured.smoothed[0]
    found = measured.suggestions()
    assert 1e-5 < found["steepest descent"] < 1.0
    assert found["steepest descent"] < 10 * found["a tenth of the minimum"]
    assert not list(tmp_path.rglob("checkpoint-*"))
    assert not (tmp_path / "recipe").exists()


@pytest.mark.slow
def test_losses_are_those_of_whole_optimizer_steps(range_trainer, tiny_model, tiny_data, tmp_path):
    for module in tiny_model.body:  # whose results depend on how a batch is cut
        module[1], module[3] = torch.nn.Identity(), torch.nn.Identity()
    start = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    whole = run_range_test(range_trainer(highest=0.1, num_steps=12, per_device_train_batch_size=16))
    tiny_model.load_state_dict(start)
    cut = run_range_test(
        range_trainer(highest=0.1, num_steps=12, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    )
    assert len(whole.losses) == len(cut.losses) == 12
    np.testing.assert_allclose(cut.losses, whole.losses, rtol=1e-3)
    assert not whole.exploded


def test_a_loss_that_is_never_finite_is_refused(range_trainer, tiny_model):
    tiny_model.head.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite at the lowest rate"):
        run_range_test(range_trainer())


@pytest.mark.slow
def test_steps_after_the_last_finite_loss_are_left_out(range_trainer, tiny_model, monkeypatch):
    trainer = range_trainer(num_steps=30)
    original = type(trainer).end_step

    def end_step(self):
        if len(self.losses) == 20:
            self._step_loss = float("inf")
        return original(self)

    monkeypatch.setattr(type(trainer), "end_step", end_step)
    measured = run_range_test(trainer)
    assert measured.exploded and len(measured.losses) == len(measured.rates) == 20
    assert np.isfinite(measured.losses).all()
