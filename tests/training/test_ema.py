"""Averaged weights, measured against a hand-written average of the weights that training itself went through."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import TrainerCallback

from mmhf.errors import InputError
from mmhf.recipe.training_sections import EmaSection
from mmhf.training.ema import AVERAGES_FILE, AverageWeights, WeightAverage
from mmhf.training.stages import Stage, StagePlan

STAGES = [
    Stage(name="head", steps=6, train="head", learning_rate=1e-2, schedule="cosine"),
    Stage(name="top", steps=6, train=["head", "body.1"], learning_rate={"head": 1e-2, "body.1": 1e-3}),
    Stage(name="body", steps=6, train="body", learning_rate=1e-3, schedule="linear"),
]


def snapshot(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Watch(TrainerCallback):
    """Keeps the weights before the first step, after each optimizer step, and as each evaluation saw them."""

    def __init__(self):
        self.after, self.evaluated = {}, {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step] = snapshot(model)

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step + 1] = snapshot(model)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.evaluated[state.global_step] = snapshot(model)


@pytest.fixture
def train(make_trainer, fusion_recipe, tiny_data):
    def run(model, folder, *, ema, resume=None, stages=STAGES, callbacks=(), **arguments):
        arguments = {"eval_strategy": "steps", "eval_steps": 1, **arguments}
        trainer = make_trainer(
            model, tiny_data, folder, stages=stages, recipe=fusion_recipe(ema=ema), callbacks=callbacks, **arguments
        )
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return trainer

    return run


def expected_average(after, name, *, first, last, decay):
    """The recurrence of the docs, in float64: the value before step `first + 1`, then steps up to `last`."""
    average = after[first][name].double()
    for updates, step in enumerate(range(first + 1, last + 1)):
        share = decay(updates)
        average = share * average + (1 - share) * after[step][name].double()
    return average


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.slow
def test_averages_follow_the_recurrence_from_the_step_at_which_a_group_thaws(tiny_model, train, tmp_path, warmup):
    watch = Watch()
    train(tiny_model, tmp_path, ema=EmaSection(decay=0.6, warmup=warmup), callbacks=[watch], save_strategy="no")

    def decay(updates):
        return min(0.6, (1 + updates) / (10 + updates)) if warmup else 0.6

    for step, name, first in [
        (6, "head.weight", 0),
        (12, "head.weight", 0),  # kept over the boundary
        (9, "body.1.0.weight", 6),
        (18, "body.1.0.bias", 6),
        (18, "body.0.0.weight", 12),
        (18, "body.1.1.running_var", 6),  # batch-norm statistics are averaged like weights
    ]:
        expected = expected_average(watch.after, name, first=first, last=step, decay=decay)
        torch.testing.assert_close(watch.evaluated[step][name].double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(watch.evaluated[step][name], watch.after[step][name])


@pytest.mark.slow
def test_what_is_frozen_is_the_models_own(tiny_model, train, tmp_path):
    watch = Watch()
    train(tiny_model, tmp_path, ema=EmaSection(decay=0.9), callbacks=[watch], save_strategy="no")
    for step, frozen in [(3, "body."), (9, "body.0."), (15, "head.")]:
        for name, tensor in watch.evaluated[step].items():
            if name.startswith(frozen) or not tensor.is_floating_point():
                assert torch.equal(tensor, watch.after[step][name]), (step, name)


@pytest.mark.slow
def test_training_goes_the_same_way_with_and_without(tiny_model, train, tmp_path):
    start = snapshot(tiny_model)
    runs = []
    for name, ema in (("off", None), ("on", EmaSection(decay=0.9))):
        tiny_model.load_state_dict(start)
        watch = Watch()
        train(tiny_model, tmp_path / name, ema=ema, callbacks=[watch], save_strategy="no")
        runs.append(watch)
    off, on = runs
    assert all(same_weights(off.after[step], on.after[step]) for step in range(19))
    assert all(same_weights(off.after[step], off.evaluated[step]) for step in range(1, 19))
    assert not same_weights(tiny_model.state_dict(), on.after[18])  # the averages stay in the model
    assert same_weights(tiny_model.state_dict(), on.evaluated[18])


@pytest.mark.slow
def test_resuming_from_any_step_ends_bit_identical(tiny_model, train, tmp_path):
    start = snapshot(tiny_model)
    ema = EmaSection(decay=0.9)
    whole = train(tiny_model, tmp_path / "whole", ema=ema)
    expected = snapshot(tiny_model)
    losses = [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]

    for step in (1, 6, 7, 12, 13, 18):
        tiny_model.load_state_dict(start)
        folder = tmp_path / f"resumed-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = train(tiny_model, folder, ema=ema, resume=folder / f"checkpoint-{step}")
        assert same_weights(tiny_model.state_dict(), expected), f"resumed at step {step}"
        assert [entry["eval_loss"] for entry in resumed.state.log_history if "eval_loss" in entry] == losses
        stored = [load_file(run / "checkpoint-18" / AVERAGES_FILE) for run in (folder, tmp_path / "whole")]
        assert same_weights(*stored)


@pytest.mark.slow
def test_a_checkpoint_holds_raw_weights_and_is_complete_only_with_its_averages(
    tiny_model, train, tmp_path, monkeypatch
):
    watch = Watch()
    train(tiny_model, tmp_path / "whole", ema=EmaSection(decay=0.9), callbacks=[watch])
    checkpoint = tmp_path / "whole" / "checkpoint-9"
    assert same_weights(load_file(checkpoint / "model.safetensors"), watch.after[9])
    averages = load_file(checkpoint / AVERAGES_FILE)
    assert {name.rsplit(".", 1)[0] for name in averages} == {"head", "body.1.0", "body.1.1"}
    assert all(torch.equal(averages[name], watch.evaluated[9][name]) for name in averages)

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("mmhf.training.ema.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        train(tiny_model, tmp_path / "broken", ema=EmaSection(decay=0.9))
    assert not (tmp_path / "broken" / "checkpoint-1" / "complete").exists()


@pytest.mark.slow
def test_the_best_model_is_the_averages_that_were_measured(tiny_model, train, tmp_path):
    # A rate that soon ruins the head: the best step is an early one, of a stage in which the body was frozen.
    stages = [STAGES[0], Stage(name="ruin", steps=6, train="all", learning_rate=5.0)]
    watch = Watch()
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    trainer = train(tiny_model, tmp_path, ema=EmaSection(decay=0.5), stages=stages, callbacks=[watch], **best)
    step = trainer.state.best_global_step
    assert 1 <= step <= 6
    assert same_weights(tiny_model.state_dict(), watch.evaluated[step])
    assert not same_weights(tiny_model.state_dict(), watch.after[step])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
    trainer.save_model(str(tmp_path / "final"))
    assert same_weights(load_file(tmp_path / "final" / "model.safetensors"), watch.evaluated[step])


@pytest.mark.slow
def test_best_weights_carried_over_a_boundary_start_new_averages(tiny_model, train, tmp_path):
    stages = [
        Stage(name="first", steps=6, learning_rate=5.0, warmup=6, carry_best="loss"),  # ruins itself
        Stage(name="second", steps=6, learning_rate=0.0),
    ]
    watch = Watch()
    train(tiny_model, tmp_path, ema=EmaSection(decay=0.9), stages=stages, callbacks=[watch], save_strategy="no")
    carried = load_file(tmp_path / "best_of_stage" / "first.safetensors")
    assert any(same_weights(carried, watch.evaluated[step]) for step in range(1, 6))  # as measured: averaged
    assert all(torch.equal(watch.evaluated[12][name], carried[name]) for name in carried if name.startswith("head."))


@pytest.fixture
def average(tiny_model):
    plan = StagePlan.build(tiny_model, STAGES, steps_per_epoch=6)
    average = WeightAverage(plan, EmaSection(decay=0.9))
    average.begin_stage(plan.locate(17))
    tiny_model.body[0][0].weight.data.add_(1.0)
    average.update()
    return average


def test_the_models_own_weights_come_back_after_nesting_and_errors(tiny_model, average):
    own = snapshot(tiny_model)
    with pytest.raises(ZeroDivisionError), average.in_model():
        averaged = snapshot(tiny_model)
        assert not same_weights(averaged, own)
        with average.in_model():  # `evaluate` calls itself for each of several data sets
            assert same_weights(snapshot(tiny_model), averaged)
        assert same_weights(snapshot(tiny_model), averaged)
        1 / 0  # noqa: B018
    assert same_weights(snapshot(tiny_model), own)


def test_a_checkpoint_without_averages_starts_them_anew(tiny_model, average, tmp_path):
    own = snapshot(tiny_model)
    average.load(tmp_path)
    average.begin_stage(average.plan.locate(17))
    with average.in_model():
        assert same_weights(snapshot(tiny_model), own)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_weights_are_refused(make_trainer, tiny_model, tiny_data, average, tmp_path, monkeypatch, kind):
    trainer = make_trainer(tiny_model, tiny_data, tmp_path)
    state = SimpleNamespace(distributed_type=kind)
    monkeypatch.setattr("mmhf.training.weights.AcceleratorState", lambda: state)
    with pytest.raises(InputError, match="ema: .* remove `ema`"):
        AverageWeights(average).on_train_begin(trainer.args, trainer.state, trainer.control)
    AverageWeights(WeightAverage(trainer.plan, None)).on_train_begin(trainer.args, trainer.state, trainer.control)
