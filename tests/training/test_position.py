"""A run goes on where it was, in samples, under another batch, accumulation or number of processes."""

import contextlib
import copy

import pytest
import torch
from transformers import TrainerCallback

from mmhf.errors import InputError
from mmhf.training.checkpoints import complete_checkpoints, is_finite, last_complete_checkpoint
from mmhf.training.position import RunPosition
from mmhf.training.stages import Stage
from mmhf.training.weights import weights_hash

STAGES = [
    Stage(name="head", epochs=1.0, train="head", learning_rate=1e-2),
    Stage(name="all", epochs=2.0, train="all", learning_rate=1e-3, schedule="linear"),
]


class Seen(TrainerCallback):
    """The learning rate of each step."""

    def __init__(self):
        self.rates = {}

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        self.rates[state.global_step] = max(group["lr"] for group in optimizer.param_groups)


@pytest.fixture
def train(make_trainer, tiny_model, tiny_data, tmp_path):
    """Train in one folder, from its last checkpoint on, up to a step; gives rows by epoch, rates and the trainer."""
    start = copy.deepcopy(tiny_model.state_dict())

    def run(folder, *, batch, accumulation=1, until=None, stages=STAGES, **arguments):
        tiny_model.load_state_dict(start)
        seen = Seen()

        class Stop(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == until:
                    raise KeyboardInterrupt

        trainer = make_trainer(
            tiny_model, tiny_data, tmp_path / folder, stages=stages, callbacks=[seen, Stop()],
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, **arguments,
        )  # fmt: skip
        rows = {}
        trainer.train_dataset.lengths = lambda keys: keys[:, 0] * 7 % 13
        read = trainer.train_dataset.read_rows

        def read_rows(keys):
            for key in keys:
                rows.setdefault(key.epoch, []).append(key.index)
            return read(keys)

        trainer.train_dataset.read_rows = read_rows
        checkpoint = last_complete_checkpoint(tmp_path / folder)
        with contextlib.suppress(KeyboardInterrupt):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return rows, seen.rates, trainer

    return run


@pytest.mark.slow
def test_rows_by_length_go_on_exactly_and_keep_to_their_steps(train, tiny_model):
    """Stopped within an epoch; with other micro-batches of the same step it goes on, with another step it does not."""
    by_length = {"train_sampling_strategy": "group_by_length"}
    whole, _, _ = train("whole", batch=8, **by_length)
    end = weights_hash(tiny_model)
    assert all(sorted(rows) == list(range(48)) for rows in whole.values())
    for rows in whole.values():
        lengths = [[row * 7 % 13 for row in rows[start : start + 8]] for start in range(0, 48, 8)]
        assert max(max(step) - min(step) for step in lengths) <= 4
    first, _, _ = train("run", batch=8, until=9, **by_length)
    with pytest.raises(
        InputError, match=r"read by length, in steps of 16 samples, and was by length, in steps of 8 sam"
    ):
        train("run", batch=16, **by_length)
    second, _, _ = train("run", batch=8, **by_length)
    assert first[1][:24] + second[1] == whole[1] and second[2] == whole[2]
    assert weights_hash(tiny_model) == end
    again, _, _ = train("halves", batch=4, accumulation=2, **by_length)
    assert again == whole


@pytest.mark.slow
def test_another_batch_goes_on_at_the_sample_that_comes_next(train):
    """48 rows: 6 steps of 8 an epoch, or 3 of 16."""
    whole, _, _ = train("whole", batch=8)
    first, _, _ = train("run", batch=8, until=9)  # half of the second epoch
    second, rates, trainer = train("run", batch=16)
    assert second[1][:24] == whole[1][24:]
    assert sorted(second[2]) == list(range(48)) and second[2] == whole[2]
    assert 0 not in second and max(second) == 2
    assert trainer.state.global_step == 9 + 2 + 3  # (24 rows left are two steps of 16)
    assert trainer.state.epoch == 3.0
    # The schedule runs out where it would have: 6 steps of 16 in all, 5 left.
    assert [rates[step] for step in range(9, 14)] == pytest.approx([1e-3 * left / 6 for left in (5, 4, 3, 2, 1)])


@pytest.mark.slow
def test_there_and_back_again_sees_each_row_once_an_epoch(train):
    rows = {}
    for batch, until in ((8, 4), (16, 6), (8, None)):
        seen, _, trainer = train("run", batch=batch, until=until)
        for epoch, indices in seen.items():
            rows.setdefault(epoch, []).extend(indices)
    # What was read ahead of the stop was not trained on: at 4 and 6 steps nothing was.
    assert {epoch: sorted(set(indices)) for epoch, indices in rows.items()} == dict.fromkeys(range(3), list(range(48)))
    assert trainer.state.epoch == 3.0
    assert [round(start) for start, _ in trainer.plan.spans()] == [0, 5]  # 4 steps of 8, one of 16


@pytest.mark.slow
def test_accumulation_is_a_batch_like_any_other(train):
    train("run", batch=8, until=8)
    rows, _, trainer = train("run", batch=8, accumulation=2)
    assert len(rows[1]) == 32 and len(rows[2]) == 48
    assert trainer.state.global_step == 8 + 2 + 3


@pytest.mark.slow
def test_the_same_samples_a_step_end_as_if_nothing_had_changed(train, tiny_model):
    """8 × 1, 4 × 2, 2 × 4, 8 × 1 samples, moved in the middle of epochs; batch norm and dropout would see the cuts."""
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    stages = [stage.model_copy(update={"batch_norm": "frozen"}) for stage in STAGES]
    train("whole", batch=8, stages=stages)
    whole = copy.deepcopy(tiny_model.state_dict())
    for batch, accumulation, until in ((8, 1, 4), (4, 2, 9), (2, 4, 15), (8, 1, None)):
        _, rates, trainer = train("run", batch=batch, accumulation=accumulation, until=until, stages=stages)
    assert trainer.state.global_step == 18 and trainer.state.epoch == 3.0
    for name, value in tiny_model.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_another_batch_at_a_boundary_and_at_the_end(train):
    train("run", batch=8, until=7, save_steps=6)
    rows, _, trainer = train("run", batch=24, save_steps=1)
    assert set(rows) == {1, 2} and trainer.state.global_step == 6 + 4
    rows, _, trainer = train("run", batch=8)
    assert rows == {} and trainer.state.global_step == 10


@pytest.mark.slow
def test_more_epochs_of_the_last_stage_go_on_with_a_finished_run(train, tiny_model):
    train("run", batch=8)
    longer = [STAGES[0], STAGES[1].model_copy(update={"epochs": 4.0})]
    rows, _, trainer = train("run", batch=8, stages=longer)
    assert set(rows) == {3, 4} and trainer.state.global_step == 30 and trainer.state.epoch == 5.0


@pytest.mark.slow
def test_unchanged_runs_are_bit_identical_and_their_plan_is_the_same(train, tiny_model):
    train("whole", batch=8)
    expected = weights_hash(tiny_model)
    train("run", batch=8, until=9)
    _, _, trainer = train("run", batch=8)
    assert weights_hash(tiny_model) == expected
    assert trainer.plan.spans() == [(0, 6), (6, 18)]


def test_other_data_is_refused():
    position = RunPosition([0], 3, 0, 24, 48, 8, "table", {})
    with pytest.raises(InputError, match="60 samples, and had 48"):
        position.check_data(60, "table")
    with pytest.raises(InputError, match="4 readers.* order"):
        position.check_data(48, "4 readers")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"dataloader_num_workers": 1, "dataloader_pin_memory": True},
        {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "dataloader_persistent_workers": True},
    ],
)
def test_no_setting_of_the_data_loader_changes_numbers(train, tiny_model, settings):
    """Dropout masks come from the global generator, which no iterator may draw from."""
    train("whole", batch=8, eval_strategy="epoch")
    expected = weights_hash(tiny_model)
    train("run", batch=8, until=6, eval_strategy="epoch", **settings)
    train("run", batch=8, eval_strategy="epoch", **settings)
    assert weights_hash(tiny_model) == expected


def test_a_loss_that_is_no_number_ends_the_run_at_the_next_log_line(train):
    stages = [Stage(name="burn", epochs=3.0, train="all", learning_rate=1e30)]
    with pytest.raises(InputError, match="stage burn: the (loss is nan|weights are no numb).*last good checkpoint"):
        train("run", batch=8, stages=stages, optim="sgd", max_grad_norm=0.0)


def test_weights_that_are_no_numbers_are_in_no_checkpoint(train, tiny_model, tmp_path):
    stages = [Stage(name="burn", epochs=3.0, train="all", learning_rate=1e30)]
    with pytest.raises(InputError):
        train("run", batch=8, stages=stages, optim="sgd", max_grad_norm=0.0, logging_strategy="no")
    assert all(is_finite(checkpoint) for checkpoint in complete_checkpoints(tmp_path / "run"))
    tensors = tiny_model.state_dict().values()
    assert not all(tensor.isfinite().all() for tensor in tensors)
