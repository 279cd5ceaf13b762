import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmhf.errors import InputError
from mmhf.models.partition import Partition
from mmhf.recipe.training_sections import StageSection
from mmhf.training.rates import RateDefaults, rate_curves, schedule_shape

NAMES = ["constant", "linear", "cosine", "polynomial", "cosine_with_restarts", "inverse_sqrt", "one_cycle", "step"]


def shape(name, num_steps, *, warmup=None, decay_rate=0.1, steps_between_decays=10):
    return schedule_shape(
        name, num_steps, warmup=warmup, decay_rate=decay_rate, steps_between_decays=steps_between_decays
    )


@given(
    name=st.sampled_from(NAMES),
    num_steps=st.integers(1, 500),
    warmup=st.one_of(st.none(), st.floats(0, 0.9), st.integers(1, 20)),
)
@pytest.mark.slow
def test_every_schedule_stays_between_zero_and_the_peak(name, num_steps, warmup):
    factors = [shape(name, num_steps, warmup=warmup)(step) for step in range(num_steps)]
    assert all(0.0 <= factor <= 1.0 + 1e-12 for factor in factors)


@pytest.mark.parametrize("num_steps", [20, 100, 357])
def test_one_cycle_equals_torch(num_steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=num_steps, pct_start=0.1, cycle_momentum=False
    )
    ours = shape("one_cycle", num_steps, warmup=0.1)
    for step in range(num_steps):
        assert ours(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        if step < num_steps - 1:
            reference.step()


@pytest.mark.parametrize("num_steps", [20, 357])
def test_beta1_cycles_as_torch_lets_it(num_steps):
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=num_steps, pct_start=0.1)
    stage = StageSection(name="all", steps=num_steps, schedule="one_cycle", warmup=0.1, cycle_beta1=[0.85, 0.95])
    curves = rate_curves(
        stage,
        Partition({"all": ["weight", "bias"]}),
        ["all"],
        num_steps=num_steps,
        steps_per_epoch=None,
        defaults=RateDefaults(1.0),
    )
    for step in range(num_steps):
        assert curves["all"].beta1(step) == pytest.approx(optimizer.param_groups[0]["betas"][0], abs=1e-9)
        assert curves["all"].at(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if step < num_steps - 1:
            reference.step()


def test_cosine_falls_from_the_peak_to_zero_along_half_a_period():
    ours = shape("cosine", 100)
    assert ours(0) == 1.0
    assert ours(50) == pytest.approx(0.5)
    assert ours(25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_step_decay_multiplies_every_so_many_steps():
    ours = shape("step", 40, decay_rate=0.5, steps_between_decays=10)
    assert [ours(step) for step in (0, 9, 10, 25, 39)] == [1.0, 1.0, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_warmup_counts_steps_or_a_share(name):
    by_steps, by_share = shape(name, 100, warmup=20), shape(name, 100, warmup=0.2)
    assert [by_steps(step) for step in range(100)] == [by_share(step) for step in range(100)]
    assert by_steps(0) == 0.0
    assert by_steps(10) == pytest.approx(0.5)
    assert by_steps(20) == 1.0


def test_a_schedule_that_depends_on_metrics_is_refused_by_name():
    with pytest.raises(InputError, match="reduce_lr_on_plateau.*cosine"):
        shape("reduce_lr_on_plateau", 10)
