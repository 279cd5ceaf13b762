"""Which losses are named: those that are no numbers, and those that jump, but no normal curve."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

from mmhf.errors import InputError
from mmhf.training.loss_watch import LossWatch, StepSamples
from mmhf.training.stages import Stage

STEPS = np.arange(2000)
DECAYS = 0.2 + 2 * np.exp(-STEPS / 300)
CURVES = {
    "small batches": lambda noise: DECAYS * np.exp(0.4 * noise.normal(size=len(STEPS))),
    "long tails": lambda noise: DECAYS * noise.gamma(3.0, 1 / 3, size=len(STEPS)),
    "learnt by heart": lambda noise: 0.7 * np.exp(-STEPS / 200) * noise.gamma(0.7, 1 / 0.7, size=len(STEPS)),
    "a plateau": lambda noise: 0.7 + 0.01 * noise.normal(size=len(STEPS)),
    "without noise": lambda noise: DECAYS,
    "rising": lambda noise: 0.5 + STEPS / 1000 + 0.1 * noise.normal(size=len(STEPS)),
}


def spikes(curve, every=10):
    watch, found = LossWatch(), []
    for step, loss in enumerate(curve, 1):
        watch.begin_step(StepSamples(step))
        watch.add(torch.tensor(loss))
        if step % every == 0 and (spike := watch.look().spike):
            found.append(spike)
    return found


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.slow
def test_no_normal_curve_has_spikes(name, seed):
    assert spikes(CURVES[name](np.random.default_rng(seed))) == []


@pytest.mark.parametrize("name", ["small batches", "a plateau", "without noise"])
def test_a_jump_is_named_once(name):
    curve = CURVES[name](np.random.default_rng(0)).copy()
    curve[800:806] = [9.0, 8.0, 7.0, 7.0, 6.0, 6.0]
    curve[1500] = 12.0
    assert [(spike.samples.step, spike.loss) for spike in spikes(curve)] == [(801, 9.0), (1501, 12.0)]


def test_the_first_loss_that_is_no_number_is_found_among_micro_batches():
    watch = LossWatch()
    for step in range(1, 9):
        watch.begin_step(StepSamples(step, 0, 4 * step - 4, 4 * step))
        watch.add(torch.tensor(0.5))
        watch.add(torch.tensor(math.nan if step >= 6 else 0.5))
    assert watch.look().broken == StepSamples(6, 0, 20, 24)
    assert watch.look().broken is None


def test_processes_are_judged_together():
    watch = LossWatch()
    watch.begin_step(StepSamples(1))
    watch.add(torch.tensor(0.5))
    assert watch.look(lambda losses: torch.stack([losses, losses * math.nan])).broken == StepSamples(1)


def poisoned(collate, row, value):
    def collator(rows):
        batch = collate(rows)
        for place, each in enumerate(rows):
            if each["index"] == row and each["epoch"] == 1:
                batch["features"][place] = value
        return batch

    return collator


@pytest.fixture
def train_on(make_trainer, tiny_model, tiny_data, collate, tmp_path):
    """Train on rows one of which has such features in the second epoch; gives the rows of its step."""

    def train(value, **arguments):
        for module in tiny_model.body:
            module[1] = torch.nn.Identity()  # batch norm takes no single row
        stages = [Stage(name="only", epochs=2.0, train="all", learning_rate=1e-3)]
        trainer = make_trainer(
            tiny_model, tiny_data, tmp_path, stages=stages, per_device_train_batch_size=1, **arguments
        )
        trainer.data_collator = poisoned(collate, 17, value)
        trainer.train()

    return train


@pytest.mark.slow
def test_the_row_of_a_loss_that_is_no_number_is_named(train_on):
    with pytest.raises(InputError, match=r"step \d+, stage only: the loss is nan \(rows 17\); last good checkpoint"):
        train_on(math.nan)


@pytest.mark.slow
def test_the_row_of_a_jump_is_named_in_one_line(train_on, caplog):
    with caplog.at_level(logging.WARNING, "mmhf"):
        train_on(1e4)
    jumps = [record.getMessage() for record in caplog.records if "jumped" in record.getMessage()]
    assert len(jumps) == 1 and jumps[0].endswith("rows 17")
