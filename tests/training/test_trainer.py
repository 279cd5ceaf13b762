import shutil

import pytest
import torch
from transformers import TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import safe_globals

from mmhf.models.classification_loss import ClassificationLoss
from mmhf.recipe.training_sections import OptimizerSection
from mmhf.training.checkpoints import last_complete_checkpoint


def same_weights(one, other):
    return all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


@pytest.mark.slow
def test_resuming_from_any_step_of_any_stage_ends_bit_identical(make_trainer, tiny_model, tiny_data, tmp_path):
    start = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    whole = make_trainer(tiny_model, tiny_data, tmp_path / "whole")
    whole.train()
    expected = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert len(losses) == 18

    for step in (1, 5, 6, 7, 11, 12, 17, 18):
        tiny_model.load_state_dict(start)
        folder = tmp_path / f"resumed-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = make_trainer(tiny_model, tiny_data, folder)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert same_weights(tiny_model.state_dict(), expected), f"resumed at step {step}"
        assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == losses


class StopAt(TrainerCallback):
    """Breaks off like a kill would: nothing more is written."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_early_ended_stage_is_still_ended_after_resuming(make_trainer, tiny_model, tiny_data, tmp_path):
    trainer = make_trainer(tiny_model, tiny_data, tmp_path, callbacks=[StopAt(5)])

    class EndFirstStage(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                trainer.plan.end_stage(3)

    trainer.add_callback(EndFirstStage())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    resumed = make_trainer(tiny_model, tiny_data, tmp_path)
    resumed.train(resume_from_checkpoint=str(last_complete_checkpoint(tmp_path)))
    assert resumed.plan.early_ends == {0: 3}
    assert resumed.state.global_step == 3 + 6 + 6


@pytest.mark.slow
def test_accumulated_micro_batches_equal_one_batch(make_trainer, tiny_model, tiny_data, tmp_path):
    # Without batch norm and dropout, whose results depend on how a batch is cut.
    for module in tiny_model.body:
        module[1], module[3] = torch.nn.Identity(), torch.nn.Identity()
    start = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    ends = []
    for batch, accumulation in ((8, 1), (2, 4)):
        tiny_model.load_state_dict(start)
        make_trainer(
            tiny_model, tiny_data, tmp_path / str(batch), per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation, save_strategy="no",
        ).train()  # fmt: skip
        ends.append({name: tensor.clone() for name, tensor in tiny_model.state_dict().items()})
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_logs_carry_stage_and_rate_of_each_group(make_trainer, tiny_model, tiny_data, tmp_path):
    trainer = make_trainer(tiny_model, tiny_data, tmp_path, save_strategy="no")
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["stage"] for entry in logged] == ["head", "head", "top", "top", "all", "all"]
    assert logged[2]["lr/head"] == 1e-2
    assert logged[2]["lr/body"] == 1e-3
    assert "lr/body" not in logged[0]
    assert logged[4]["lr/body"] == logged[4]["lr/head"] == logged[4]["learning_rate"]


@pytest.mark.slow
def test_only_whole_checkpoints_count_and_old_ones_go(make_trainer, tiny_model, tiny_data, tmp_path):
    trainer = make_trainer(tiny_model, tiny_data, tmp_path, save_total_limit=2)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-17", "checkpoint-18"]
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-18"
    (tmp_path / "checkpoint-18" / "complete").unlink()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-17"
    (tmp_path / "checkpoint-99").mkdir()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-17"


@pytest.mark.slow
def test_a_run_folder_holds_nothing_that_must_be_unpickled(make_trainer, tiny_model, tiny_data, tmp_path):
    make_trainer(tiny_model, tiny_data, tmp_path, save_strategy="steps", save_steps=9).train()
    tensors = [*tmp_path.rglob("*.pt"), *tmp_path.rglob("*.pth")]
    assert len(tensors) > 0
    for path in tensors:
        with safe_globals():  # NumPy's own random state, which transformers lists by name
            torch.load(path, weights_only=True)
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("every, expected", [(1, {6, 12, 18}), (2, {12, 18})])
@pytest.mark.slow
def test_saving_every_so_many_epochs(make_trainer, fusion_recipe, tiny_model, tiny_data, tmp_path, every, expected):
    recipe = fusion_recipe(checkpoints={"every_epochs": every})
    make_trainer(tiny_model, tiny_data, tmp_path, recipe=recipe, save_strategy="epoch").train()
    assert {int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")} == expected


@pytest.mark.parametrize(
    "section, optimizer_class, option",
    [
        (OptimizerSection(name="sgd", momentum=0.9, nesterov=True), torch.optim.SGD, ("momentum", 0.9)),
        (OptimizerSection(name="adam", betas=[0.8, 0.9]), torch.optim.Adam, ("betas", (0.8, 0.9))),
        (OptimizerSection(name="adamw", eps=1e-6, weight_decay=0.3), torch.optim.AdamW, ("eps", 1e-6)),
        (None, torch.optim.AdamW, ("betas", (0.9, 0.95))),
    ],
)
def test_the_optimizer_is_the_one_asked_for(
    make_trainer, fusion_recipe, tiny_model, tiny_data, tmp_path, section, optimizer_class, option
):
    recipe = fusion_recipe(optimizer=section)
    trainer = make_trainer(tiny_model, tiny_data, tmp_path, recipe=recipe, adam_beta2=0.95)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is optimizer_class
    name, value = option
    assert all(group[name] == value for group in optimizer.param_groups)
    if section is not None and section.weight_decay is not None:
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.3}


@pytest.mark.parametrize("class_weights", [None, [1.0, 2.0, 5.0]])
@pytest.mark.slow
def test_uneven_micro_batches_weigh_each_row_alike(make_trainer, tiny_model, tiny_data, tmp_path, class_weights):
    loss = ClassificationLoss(class_weights=class_weights)
    for module in tiny_model.body:
        module[1], module[3] = torch.nn.Identity(), torch.nn.Identity()
    tiny_model.loss = loss
    tiny_model.config.label_smoothing = 0.0

    def forward(features, labels=None, num_items_in_batch=None):
        logits = tiny_model.head(tiny_model.body(features))
        return SequenceClassifierOutput(loss=loss(logits, labels, num_items_in_batch), logits=logits)

    tiny_model.forward = forward
    tiny_model.accepts_loss_kwargs = True
    tiny_data.features, tiny_data.labels = tiny_data.features[:45], tiny_data.labels[:45]
    start = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    ends = []
    for batch, accumulation in ((8, 1), (2, 4)):
        tiny_model.load_state_dict(start)
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        make_trainer(tiny_model, tiny_data, tmp_path / str(batch), save_strategy="no", **sizes).train()
        ends.append({name: tensor.clone() for name, tensor in tiny_model.state_dict().items()})
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-4, atol=1e-6)
