"""What a stage can set besides what trains: optimizers, layer-wise decay, batch norm, best weights."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from mmhf.errors import InputError
from mmhf.recipe.training_sections import OptimizerSection, PlateauSection
from mmhf.training.optimizers import MixedOptimizer
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer
from mmhf.training.weights import check_gradients, weights_hash

SGD = OptimizerSection(name="sgd", momentum=0.9)
ADAMW = OptimizerSection(name="adamw", betas=[0.8, 0.9], weight_decay=0.2)


def one_batch(data):
    return {"features": data.features[:16], "labels": data.labels[:16]}


def take_steps(model, plan, data, count):
    optimizer = plan.create_optimizer()
    scheduler = plan.create_scheduler(optimizer)
    model.eval()
    for _ in range(count):
        model.zero_grad()
        model(**one_batch(data)).loss.backward()
        optimizer.step()
        scheduler.step()
    return optimizer


def test_two_kinds_of_optimizer_step_their_groups_as_each_would_alone(tiny_model, tiny_data):
    reference = copy.deepcopy(tiny_model)
    stage = Stage(
        name="all", steps=5, learning_rate={"body": 0.1, "head": 0.01}, optimizer={"body": SGD, "head": ADAMW}
    )
    plan = StagePlan.build(tiny_model, [stage], steps_per_epoch=5)
    assert isinstance(take_steps(tiny_model, plan, tiny_data, 5), MixedOptimizer)

    body = torch.optim.SGD(reference.body.parameters(), lr=0.1, momentum=0.9)
    head = torch.optim.AdamW(
        [{"params": [reference.head.weight]}, {"params": [reference.head.bias], "weight_decay": 0.0}],
        lr=0.01, betas=(0.8, 0.9), weight_decay=0.2, fused=True,
    )  # fmt: skip
    reference.eval()
    for _ in range(5):
        reference.zero_grad()
        reference(**one_batch(tiny_data)).loss.backward()
        body.step()
        head.step()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, tiny_model.state_dict()[name]), name


@pytest.mark.slow
def test_a_group_can_change_its_optimizer_between_stages_and_still_resume_exactly(
    make_trainer, tiny_model, tiny_data, tmp_path
):
    stages = [
        Stage(name="first", epochs=1.0, learning_rate=1e-2),
        Stage(name="second", epochs=1.0, learning_rate=1e-2, optimizer={"body": SGD}),
    ]
    start = copy.deepcopy(tiny_model.state_dict())
    make_trainer(tiny_model, tiny_data, tmp_path, stages=stages).train()
    expected = weights_hash(tiny_model)
    for step in (5, 6, 9):
        tiny_model.load_state_dict(start)
        resumed = make_trainer(tiny_model, tiny_data, tmp_path, stages=stages)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert weights_hash(tiny_model) == expected


def test_layer_decay_lowers_the_rate_with_the_distance_from_the_output(tiny_model):
    stage = Stage(name="all", steps=5, learning_rate=1.0, layer_decay=0.5)
    plan = StagePlan.build(tiny_model, [stage], steps_per_epoch=5)
    assert plan.learning_rates(0) == {"body.0": 0.25, "body.1": 0.5, "head": 1.0}


def test_warmup_and_floor_by_group(tiny_model):
    stage = Stage(
        name="all", steps=10, learning_rate=1.0, schedule="linear", warmup={"body": 4.0}, min_lr={"head": 0.5}
    )
    plan = StagePlan.build(tiny_model, [stage], steps_per_epoch=5)
    assert plan.learning_rates(0) == {"body.0": 0.0, "body.1": 0.0, "head": 1.0}
    assert plan.learning_rates(2)["body.0"] == 0.5
    assert plan.learning_rates(9)["head"] == pytest.approx(0.55)


def test_a_setting_for_groups_that_do_not_train_is_refused(tiny_model):
    stage = Stage(name="head", steps=5, train="head", optimizer={"body": SGD})
    with pytest.raises(InputError, match="optimizer is given for 'body', which this stage does not train"):
        StagePlan.build(tiny_model, [stage], steps_per_epoch=5)


def test_frozen_batch_norm_keeps_its_statistics_while_its_weights_train(make_trainer, tiny_model, tiny_data, tmp_path):
    before = copy.deepcopy(tiny_model.state_dict())
    stages = [Stage(name="all", epochs=1.0, learning_rate=1e-2, batch_norm="frozen")]
    make_trainer(tiny_model, tiny_data, tmp_path, stages=stages, save_strategy="no").train()
    after = tiny_model.state_dict()
    assert torch.equal(before["body.0.1.running_mean"], after["body.0.1.running_mean"])
    assert not torch.equal(before["body.0.1.weight"], after["body.0.1.weight"])


class RememberWeights(TrainerCallback):
    """Keeps the parameters that each step begins with."""

    def __init__(self):
        self.at = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.at[state.global_step] = {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("metric", "sign"), [("score", 1), ("text_to_image_median_rank", -1)])
@pytest.mark.slow
def test_the_next_stage_starts_from_the_best_weights_of_the_last(
    make_trainer, tiny_model, tiny_data, tmp_path, metric, sign
):
    stages = [
        Stage(name="first", epochs=1.0, learning_rate=1e-1, carry_best=metric),
        Stage(name="second", epochs=1.0, learning_rate=1e-3),
    ]
    remembered = RememberWeights()
    trainer = make_trainer(
        tiny_model, tiny_data, tmp_path, stages=stages, callbacks=[remembered],
        eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    scores = {1: 0.1, 2: 0.7, 3: 0.9, 4: 0.9, 5: 0.2, 6: 0.3}
    trainer.compute_metrics = lambda _: {metric: sign * scores.get(trainer.state.global_step, 0.0)}
    trainer.train()
    best = load_file(tmp_path / "best_of_stage" / "first.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in remembered.at[3].items())
    assert all(torch.equal(tensor, best[name]) for name, tensor in remembered.at[6].items())
    assert not all(torch.equal(tensor, best[name]) for name, tensor in remembered.at[5].items())


@pytest.mark.slow
def test_an_unmeasured_metric_to_carry_by_is_refused(make_trainer, tiny_model, tiny_data, tmp_path):
    stages = [Stage(name="only", epochs=1.0, learning_rate=1e-3, carry_best="f1_marco")]
    trainer = make_trainer(tiny_model, tiny_data, tmp_path, stages=stages, eval_strategy="steps", eval_steps=1)
    with pytest.raises(InputError, match="carry_best: 'f1_marco' is not measured; choose .*loss"):
        trainer.train()


def test_a_thawed_parameter_without_a_gradient_is_named(tiny_model, tiny_data):
    tiny_model.unused = torch.nn.Linear(2, 2)
    tiny_model(**one_batch(tiny_data)).loss.backward()
    check_gradients(tiny_model, ["head.weight"])
    with pytest.raises(RuntimeError, match=r"2 of 3 parameters .* the first is unused\.weight"):
        check_gradients(tiny_model, ["head.weight", "unused.weight", "unused.bias"])


@pytest.mark.slow
def test_the_gradient_check_runs_at_each_boundary(make_trainer, tiny_model, tiny_data, tmp_path):
    original = tiny_model.body[0].forward
    tiny_model.body[0].forward = lambda features: original(features).detach()
    stages = [Stage(name="head", epochs=1.0, train="head"), Stage(name="all", epochs=1.0, train="all")]
    trainer = make_trainer(tiny_model, tiny_data, tmp_path, stages=stages, save_strategy="no")
    with pytest.raises(RuntimeError, match="received no gradient"):
        trainer.train()
    assert trainer.state.global_step == 6


def test_weights_hash_sees_one_changed_bit(tiny_model):
    before = weights_hash(tiny_model)
    with torch.no_grad():
        tiny_model.body[0][1].running_mean[0] += 1e-7
    assert weights_hash(tiny_model) != before


@pytest.mark.slow
def test_plateaus_of_a_stage_come_before_those_of_the_recipe(make_trainer, tiny_model, tiny_data, tmp_path):
    own = Stage(name="own", steps=6, learning_rate=0.0, unfreeze_on_plateau=PlateauSection(patience=1))
    other = Stage(name="other", steps=6, learning_rate=0.0)
    trainer = make_trainer(
        tiny_model, tiny_data, tmp_path, stages=[own, other], eval_strategy="steps", eval_steps=1, save_strategy="no",
    )  # fmt: skip
    assert isinstance(trainer, MMTrainer)
    trainer.train()
    assert trainer.plan.early_ends == {0: 2}
