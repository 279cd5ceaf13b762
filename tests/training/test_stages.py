import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmhf.errors import InputError
from mmhf.training.planned_stage import PlannedStage
from mmhf.training.stages import Stage, StagePlan

HEAD_THEN_ALL = [
    Stage(name="head", epochs=2.0, train="head", learning_rate=1e-2, schedule="cosine", min_lr=1e-4),
    Stage(name="all", steps=30, train="all", learning_rate={"body": 1e-4, "body.1": 2e-4, "head": 1e-3}),
]


@pytest.fixture
def plan(tiny_model):
    return StagePlan.build(tiny_model, HEAD_THEN_ALL, steps_per_epoch=10)


def test_stages_share_one_step_axis(plan):
    assert plan.num_steps == 50
    located = [plan.locate(step) for step in (0, 19, 20, 49)]
    assert [(at.index, at.step) for at in located] == [(0, 0), (0, 19), (1, 0), (1, 29)]
    assert plan.locate(50) is None


def test_only_the_groups_of_a_stage_have_a_rate(plan):
    assert plan.learning_rates(0) == {"body.0": 0.0, "body.1": 0.0, "head": 1e-2}
    assert plan.learning_rates(20) == {"body.0": 1e-4, "body.1": 2e-4, "head": 1e-3}


def test_a_report_s_rates_name_their_groups(plan):
    assert [row["learning rate"] for row in plan.summary()] == [
        "0.01 for head",
        "0.001 for head; 0.0002 for body.1; 0.0001 for body.0",
    ]


def test_the_schedule_ends_at_min_lr(plan):
    rates = [plan.learning_rates(step)["head"] for step in range(20)]
    assert rates == sorted(rates, reverse=True)
    assert rates[10] == pytest.approx((1e-2 + 1e-4) / 2)
    assert rates[-1] >= 1e-4


@given(ends=st.lists(st.integers(1, 49), min_size=1, max_size=2, unique=True).map(sorted))
def test_each_step_lies_in_exactly_one_stage_however_stages_are_cut_short(ends):
    section = Stage(name="s", steps=25)
    plan = StagePlan(None, {}, [PlannedStage(section, 25, None, {}) for _ in range(3)])
    for end in ends:
        plan.end_stage(end)
    positions = [plan.locate(step) for step in range(75)]
    running = [at.index for at in positions if at is not None]
    assert running == sorted(running)
    assert all(at.started_at + at.step == step for step, at in enumerate(positions) if at is not None)


def test_a_stage_cut_short_brings_the_next_one_forward(plan):
    plan.end_stage(7)
    assert plan.locate(6).index == 0
    assert (plan.locate(7).index, plan.locate(7).step) == (1, 0)
    assert plan.locate(36).index == 1
    assert plan.locate(37) is None


def test_the_optimizer_knows_every_parameter_once_and_decays_only_matrices(plan, tiny_model):
    optimizer = plan.create_optimizer(torch.optim.AdamW, weight_decay=0.1)
    parameters = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(parameters) == sorted(id(p) for p in tiny_model.parameters())
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.1) for p in group["params"])


def test_beta1_cycles_with_the_rate_in_its_own_stage_alone(tiny_model):
    first = Stage(name="first", steps=10, schedule="one_cycle", warmup=0.3, cycle_beta1=[0.85, 0.95])
    plan = StagePlan.build(tiny_model, [first, Stage(name="second", steps=5)], steps_per_epoch=10)
    optimizer = plan.create_optimizer()
    scheduler = plan.create_scheduler(optimizer)
    seen = []
    for _ in range(10):
        seen.append({group["betas"][0] for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    assert seen[0] == seen[9] == {0.95} and min(max(each) for each in seen) == pytest.approx(0.85)
    assert plan.cycled_beta1(10) == {}


def test_the_scheduler_follows_the_plan_and_its_state_brings_early_ends_back(plan, tiny_model):
    optimizer = plan.create_optimizer()
    scheduler = plan.create_scheduler(optimizer)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    plan.end_stage(5)
    scheduler.refresh()
    expected = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert expected == plan.learning_rates(5)

    other = StagePlan.build(tiny_model, HEAD_THEN_ALL, steps_per_epoch=10)
    resumed_optimizer = other.create_optimizer()
    resumed = other.create_scheduler(resumed_optimizer)
    resumed.load_state_dict(scheduler.state_dict())
    assert other.early_ends == plan.early_ends
    assert {group["name"]: group["lr"] for group in resumed_optimizer.param_groups} == expected


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage(name="s", epochs=1.0, train="haed"), "haed.*head"),
        (Stage(name="s", epochs=1.0, train=["head", "!head"]), "leave no group"),
        (Stage(name="s", epochs=1.0, train="head", learning_rate={"body": 1e-3}), "'body', which this stage does not"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(tiny_model, stage, message):
    with pytest.raises(InputError, match=message):
        StagePlan.build(tiny_model, [stage], steps_per_epoch=10)


def test_epochs_of_a_stream_are_refused(tiny_model):
    with pytest.raises(InputError, match="give it `steps`"):
        StagePlan.build(tiny_model, HEAD_THEN_ALL, steps_per_epoch=None)
