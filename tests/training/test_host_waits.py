"""A training step looks at no value: on a GPU each look would wait for all that was asked for before it."""

from __future__ import annotations

import pytest
import torch
from device_watch import Waits, as_on_a_gpu
from tiny_families import FAMILIES
from torch import nn
from transformers import TrainerCallback

from mmhf.models.captioner.caption_loss import caption_loss
from mmhf.training.stages import Stage


class ByStep(TrainerCallback):
    """What was seen in each step, logging and stage boundaries apart."""

    def __init__(self, waits: Waits) -> None:
        self.waits = waits
        self.steps: list[list[str]] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(self.waits.seen)
        self.waits.seen = []


def looks(family, folder, *, stages=None, model=None, **arguments):
    """What each step looked at, of a run that logs only at its end."""
    waits = Waits()
    by_step = ByStep(waits)
    model = family.model(dropout=0.1) if model is None else model
    trainer = family.trainer(
        model, folder, stages=stages, callbacks=[by_step], use_cpu=True, logging_steps=1000, **arguments
    )
    with as_on_a_gpu(), waits:
        trainer.train()
    return by_step.steps


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_no_step_of_any_stage_looks_at_a_value(name, tmp_path):
    steps = looks(FAMILIES[name], tmp_path)
    assert len(steps) == 6
    first_of_stages = (0, 3)  # these check that what a stage thaws gets a gradient, and that ranks agree
    assert [seen for number, seen in enumerate(steps) if number not in first_of_stages] == [[]] * 4


@pytest.mark.slow
def test_gradient_caching_compares_its_passes_once_a_stage(tmp_path):
    stages = [Stage(name="all", steps=4)]
    steps = looks(FAMILIES["dual_encoder"], tmp_path, stages=stages, num_rows=64, gradient_accumulation_steps=4)
    assert steps[0]
    assert steps[1:] == [[]] * 3


def test_rows_without_an_image_are_left_out_by_their_numbers(tmp_path):
    family = FAMILIES["fusion"]
    model = family.model(missing_modalities=["image", "text"])
    encoded = []
    model.vision.register_forward_hook(lambda module, inputs, output: encoded.append(len(output[0])))
    batch = family.batch(range(4))
    mask, rows = torch.tensor([1, 0, 1, 1]), torch.tensor([0, 2, 3])
    with as_on_a_gpu(), Waits() as waits:
        found = model(**batch, image_mask=mask, image_rows=rows, text_mask=torch.ones(4), text_rows=torch.arange(4))
        found.loss.backward()
    assert waits.seen == []
    assert encoded == [3]
    torch.testing.assert_close(found.logits, model(**batch, image_mask=mask, text_mask=torch.ones(4)).logits)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_what_a_gpu_computes_is_what_a_cpu_computes(name):
    family = FAMILIES[name]
    model, batch = family.model().train(), family.batch(range(5))
    found = []
    for _ in range(2):
        with as_on_a_gpu() if found else Waits():
            loss = family.loss(model, batch)
            gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        found.append((loss.detach(), *(gradient for gradient in gradients if gradient is not None)))
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trains_head", [False, True])
def test_positions_without_a_label_add_nothing_where_they_are_not_left_out(trains_head):
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 8, requires_grad=True)
    head = nn.Linear(8, 50).requires_grad_(trains_head)
    labels = torch.randint(0, 50, (3, 7))
    labels[0, 4:] = labels[2, :2] = -100
    leaves = [hidden, head.weight, head.bias] if trains_head else [hidden]

    def run():
        loss = caption_loss(hidden, labels, head.weight, head.bias)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    on_cpu = run()
    with as_on_a_gpu():
        on_gpu = run()
    for one, other in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(other, one)
    assert on_gpu[1][0, 4:].abs().sum() == 0
    with as_on_a_gpu():
        nothing = caption_loss(hidden, torch.full_like(labels, -100), head.weight, head.bias)
    assert nothing.item() == 0
