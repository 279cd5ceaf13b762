"""The stage callback with the stock Trainer: nothing of MMTrainer is needed for stages."""

import copy

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmhf.errors import InputError
from mmhf.models.quantization import QuantizedLinear
from mmhf.recipe.training_sections import OptimizerSection, PlateauSection
from mmhf.training.boundary import StageCallback, refuse_what_needs_whole_weights, stalled
from mmhf.training.stages import Stage, StagePlan

STAGES = [
    Stage(name="head", steps=4, train="head", learning_rate=1e-2),
    Stage(name="top", steps=4, train=["head", "body.1"], learning_rate=1e-2),
    Stage(name="bottom", steps=4, train="body.0", learning_rate=1e-2),
]


class Snapshots(TrainerCallback):
    """Keeps weights, buffers and optimizer state as they are before each step."""

    def __init__(self):
        self.weights, self.optimizer_state, self.rates = [], [], []

    def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
        names = {id(p): name for name, p in model.named_parameters()}
        self.weights.append(copy.deepcopy(model.state_dict()))
        self.optimizer_state.append({names[id(p)]: copy.deepcopy(s) for p, s in optimizer.state.items()})
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})

    def on_train_end(self, args, state, control, **kwargs):
        self.on_step_begin(args, state, control, **kwargs)


def train_with_stock_trainer(model, data, tmp_path, stages=STAGES, optimizer_class=torch.optim.AdamW, **arguments):
    plan = StagePlan.build(model, stages, steps_per_epoch=6)
    optimizer = plan.create_optimizer(optimizer_class, weight_decay=0.1)
    snapshots = Snapshots()
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=plan.num_steps,
            per_device_train_batch_size=8,
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
            **arguments,
        ),
        train_dataset=data,
        eval_dataset=data,
        optimizers=(optimizer, plan.create_scheduler(optimizer)),
        callbacks=[StageCallback(plan), snapshots],
    )
    trainer.train()
    return snapshots


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.slow
def test_outside_its_stages_a_group_does_not_change_by_one_bit(tiny_model, tiny_data, tmp_path, optimizer_class):
    snapshots = train_with_stock_trainer(tiny_model, tiny_data, tmp_path, optimizer_class=optimizer_class)
    trained_by_stage = [("head",), ("head", "body.1"), ("body.0",)]
    for stage, trained in enumerate(trained_by_stage):
        before, after = snapshots.weights[4 * stage], snapshots.weights[4 * stage + 4]
        for name in before:
            moved = not torch.equal(before[name], after[name])
            assert moved == name.startswith(trained), f"{name} in stage {stage}"


@pytest.mark.slow
def test_the_optimizer_state_of_a_frozen_group_stands_still(tiny_model, tiny_data, tmp_path):
    snapshots = train_with_stock_trainer(tiny_model, tiny_data, tmp_path)
    first, second, third = (snapshots.optimizer_state[4 * stage] for stage in (1, 2, 3))
    assert set(first) == {"head.weight", "head.bias"}
    for name, state in second.items():
        assert all(torch.equal(torch.as_tensor(value), third[name][key]) for key, value in state.items()), name


def test_each_group_moves_at_its_own_rate(tiny_model, tiny_data, tmp_path):
    stages = [Stage(name="all", steps=3, train="all", learning_rate={"body": 1e-5, "head": 1e-1})]
    snapshots = train_with_stock_trainer(tiny_model, tiny_data, tmp_path, stages, torch.optim.SGD, max_grad_norm=0.0)
    assert snapshots.rates[1] == {"body.0": 1e-5, "body.1": 1e-5, "head": 1e-1}


def test_the_first_step_of_a_stage_already_trains_at_its_rate(tiny_model, tiny_data, tmp_path):
    rates = train_with_stock_trainer(tiny_model, tiny_data, tmp_path).rates
    assert rates[3] == {"body.0": 0.0, "body.1": 0.0, "head": 1e-2}
    assert rates[4] == {"body.0": 0.0, "body.1": 1e-2, "head": 1e-2}
    assert rates[8] == {"body.0": 1e-2, "body.1": 0.0, "head": 0.0}


def test_a_start_that_nothing_provides_is_refused(tiny_model, tiny_data, tmp_path):
    stages = [Stage(name="head", steps=2, train="head", start="linear_probe")]
    with pytest.raises(InputError, match="stage 'head': start: linear_probe is for what a recipe trains"):
        train_with_stock_trainer(tiny_model, tiny_data, tmp_path, stages)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2, 3], False),
        ([3, 2, 1], True),
        ([3, 2], False),
        ([1, 1.05, 1.08], True),
        ([1, 0, 2, 0], False),
        ([], False),
    ],
)
def test_stalled_counts_evaluations_without_enough_improvement(scores, expected):
    assert stalled(scores, PlateauSection(patience=2, min_delta=0.1)) == expected


def run_that_stalls(model, data, tmp_path, **settings):
    stages = [Stage(name=name, steps=12, train="head", learning_rate=0.0) for name in ("first", "second")]
    plan = StagePlan.build(model, stages, steps_per_epoch=6)
    optimizer = plan.create_optimizer()
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(tmp_path), max_steps=24, per_device_train_batch_size=8, disable_tqdm=True, use_cpu=True,
            save_strategy="no", eval_strategy="steps", eval_steps=2,
        ),
        train_dataset=data,
        eval_dataset=data,
        optimizers=(optimizer, plan.create_scheduler(optimizer)),
        callbacks=[StageCallback(plan, **settings)],
    )  # fmt: skip
    trainer.train()
    return trainer, plan


def test_a_stalled_run_ends(tiny_model, tiny_data, tmp_path):
    trainer, _ = run_that_stalls(tiny_model, tiny_data, tmp_path, early_stopping=PlateauSection(patience=2))
    assert trainer.state.global_step == 6


def test_a_stalled_stage_hands_over_to_the_next(tiny_model, tiny_data, tmp_path):
    trainer, plan = run_that_stalls(tiny_model, tiny_data, tmp_path, unfreeze_on_plateau=PlateauSection(patience=2))
    assert plan.early_ends == {0: 6, 1: 12}
    assert trainer.state.global_step == 12


def test_a_metric_that_is_not_measured_is_refused_by_name(tiny_model, tiny_data, tmp_path):
    plan = StagePlan.build(tiny_model, STAGES, steps_per_epoch=6)
    callback = StageCallback(plan, early_stopping=PlateauSection(metric="f1_marco"))
    callback.current = plan.locate(0)
    state = type("State", (), {"global_step": 1, "log_history": []})()
    with pytest.raises(InputError, match="f1_marco.*choose f1_macro, loss"):
        callback.on_evaluate(None, state, None, metrics={"eval_loss": 1.0, "eval_f1_macro": 0.5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"carry_best": "loss"}, "stage 'head': carry_best needs whole weights .* remove it"),
        (
            {"optimizer": {"body.1": OptimizerSection(name="sgd")}},
            "more than one kind of optimizer needs whole",
        ),
    ],
)
def test_what_sharded_weights_cannot_do_is_refused(changes, message, tiny_model):
    stage = Stage(name="head", steps=1, train=["head", "body.1"], **changes)
    refuse_what_needs_whole_weights(StagePlan.build(tiny_model, STAGES, steps_per_epoch=6))
    with pytest.raises(InputError, match=message):
        refuse_what_needs_whole_weights(StagePlan.build(tiny_model, [stage], steps_per_epoch=6))


def test_few_bits_are_not_sharded(tiny_model):
    tiny_model.body[0][0] = QuantizedLinear(tiny_model.body[0][0], 8)
    plan = StagePlan.build(tiny_model, [Stage(name="head", steps=1, train=["head"])], steps_per_epoch=6)
    with pytest.raises(InputError, match="body: 128 weights in 8 bits, .*: quantization needs whole weights"):
        refuse_what_needs_whole_weights(plan)


def test_evaluations_come_every_so_many_epochs_and_at_the_end_of_each_stage(tiny_model, tmp_path):
    stages = [Stage(name="a", epochs=3.0), Stage(name="b", epochs=2.0)]
    callback = StageCallback(StagePlan.build(tiny_model, stages, steps_per_epoch=2), evaluate_every=2)
    args = TrainingArguments(str(tmp_path), eval_strategy="epoch", save_strategy="epoch", report_to="none")
    evaluated = []
    for epoch in range(1, 6):
        control = TrainerControl(should_evaluate=True)
        callback.on_epoch_end(args, TrainerState(epoch=float(epoch), global_step=2 * epoch), control)
        evaluated.append(control.should_evaluate)
    assert evaluated == [False, True, True, True, True]
