"""Forward, backward, precisions, stages, resuming, gradient caching and generation of each family on a CUDA device."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from tiny_families import FAMILIES, VOCABULARY
from transformers import TrainerCallback

from mmhf.training.stages import Stage

DEVICE = torch.device("cuda")


def to_device(batch):
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def gradients(model):
    return {name: value.grad.cpu() for name, value in model.named_parameters() if value.grad is not None}


def test_a_step_in_fp32_equals_the_cpus(family, exact_floats):
    model, batch = family.model().train(), family.batch(range(6))
    on_gpu = copy.deepcopy(model).to(DEVICE)
    loss, other = family.loss(model, batch), family.loss(on_gpu, to_device(batch))
    loss.backward()
    other.backward()
    torch.testing.assert_close(other.cpu(), loss, rtol=1e-4, atol=1e-5)
    expected, found = gradients(model), gradients(on_gpu)
    assert found.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * float(largest), msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_two_stages_train_in_each_precision(family, precision, tmp_path):
    model = family.model(dropout=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = {} if precision == "fp32" else {precision: True}
    trainer = family.trainer(model, tmp_path, **arguments)
    frozen = {
        name for group in trainer.plan.partition if group not in trainer.plan.stages[0].curves
        for name in trainer.plan.partition[group]
    }  # fmt: skip
    moved: list[str] = []

    class AtTheBoundary(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                now = model.state_dict()
                moved.extend(name for name in frozen if not torch.equal(now[name].cpu(), before[name]))

    trainer.add_callback(AtTheBoundary())
    trainer.train()
    assert next(model.parameters()).device.type == "cuda"
    assert next(model.parameters()).dtype == torch.float32
    assert not moved
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6
    assert all(math.isfinite(loss) for loss in losses)
    assert (
        not torch.equal(model.state_dict()[sorted(frozen)[0]].cpu(), before[sorted(frozen)[0]]) or precision == "fp16"
    )


def test_a_stopped_run_resumes_to_the_same_bits(family, tmp_path):
    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise InterruptedError

    def run(folder, *, callbacks=(), resume=False):
        model = family.model(dropout=0.1)
        trainer = family.trainer(
            model, folder, callbacks=callbacks, bf16=True, save_strategy="steps", save_steps=1, full_determinism=True
        )
        with contextlib.suppress(InterruptedError):
            trainer.train(resume_from_checkpoint=resume or None)
        return model.state_dict()

    try:
        whole = run(tmp_path / "whole")
        run(tmp_path / "stopped", callbacks=[Stop()])
        resumed = run(tmp_path / "stopped", resume=True)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_cached_gradients_equal_those_of_the_whole_batch(tmp_path, exact_floats):
    family = FAMILIES["dual_encoder"]
    found = {}
    for size in (8, 2):
        model = family.model()
        trainer = family.trainer(
            model,
            tmp_path / str(size),
            num_rows=16,
            stages=[Stage(name="all", steps=2)],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            optim="sgd",
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found[size] = (losses, model.state_dict())
    assert found[2][0] == pytest.approx(found[8][0], rel=1e-4)
    for name, value in found[8][1].items():
        torch.testing.assert_close(found[2][1][name], value, rtol=1e-3, atol=1e-5)


def test_captions_equal_the_cpus(exact_floats):
    family = FAMILIES["captioner"]
    model = family.model().eval()
    pixels = family.batch(range(4))["pixel_values"]
    on_gpu = copy.deepcopy(model).to(DEVICE)
    for options in ({}, {"num_beams": 3}):
        expected = model.generate(pixels, max_new_tokens=6, do_sample=False, **options)
        found = on_gpu.generate(pixels.to(DEVICE), max_new_tokens=6, do_sample=False, **options)
        assert found.device.type == "cuda"
        assert torch.equal(found.cpu(), expected)
    sampled = on_gpu.generate(pixels.to(DEVICE), max_new_tokens=6, do_sample=True)
    assert int(sampled.max()) < VOCABULARY


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_half_precision(family, dtype):
    model = family.model().eval().to(DEVICE, dtype)
    batch = to_device(family.batch(range(4)))
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    with torch.no_grad():
        assert torch.isfinite(family.loss(model, batch))
