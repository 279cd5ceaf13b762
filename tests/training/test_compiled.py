"""A compiled model through two stages: made anew, compared with the plain one, resumed, saved under its own names."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from safetensors.torch import load_file
from tiny_families import FAMILIES
from transformers import TrainerCallback

from mmhf.training.boundary import beside_training
from mmhf.training.compiled import CompiledStage, Compiling, compiled_layers, forget_compiled
from mmhf.training.frozen_copies import keep_copies, release_copies
from mmhf.training.stages import Stage
from mmhf.training.weights import tensors_hash

COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError


TWO_STAGES = [Stage(name="head", epochs=1.0, train="head", learning_rate=1e-2), Stage(name="all", epochs=1.0)]
"""Of 6 steps each."""


def told_of_compiling(caplog):
    return [record.message for record in caplog.records if "first pass, compiled" in record.message]


@pytest.mark.slow
def test_two_stages_compile_resume_and_save_the_same_names(make_trainer, tiny_model, tiny_data, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="mmhf")
    for module in tiny_model.body:
        module[3] = torch.nn.Identity()  # dropout is drawn in another order where it is compiled

    def train(folder, *, stop=None, resume=None, **more):
        model = copy.deepcopy(tiny_model)  # accelerate compiles nothing that it has prepared before
        trainer = make_trainer(
            model, tiny_data, tmp_path / folder, stages=TWO_STAGES, callbacks=[Stop(stop)], save_steps=4, **more
        )
        trainer.train(resume_from_checkpoint=resume)
        return model.state_dict()

    plain, whole = train("plain"), train("whole", **COMPILED)
    for key, value in plain.items():
        torch.testing.assert_close(whole[key], value, rtol=1e-3, atol=1e-4)
    told = told_of_compiling(caplog)
    assert [line.partition(":")[0] for line in told] == ["Stage head", "Stage all"]
    assert all("equal to the plain model within" in line for line in told)
    with pytest.raises(InterruptedError):
        train("stopped", stop=9, **COMPILED)
    resumed = train("stopped", resume=str(tmp_path / "stopped" / "checkpoint-8"), **COMPILED)
    assert tensors_hash(resumed) == tensors_hash(whole)
    saved = [load_file(tmp_path / folder / "checkpoint-12" / "model.safetensors") for folder in ("plain", "whole")]
    assert saved[0].keys() == saved[1].keys()
    assert not any("_orig_mod" in key for key in saved[1])


@pytest.mark.slow
def test_one_graph_serves_all_layers_of_a_stack_and_frozen_copies_stay_in_it():
    """Under autocast, with the copies of frozen weights that a GPU gets."""
    family = FAMILIES["captioner"]
    model = family.model().requires_grad_(False).eval()
    model.projector.requires_grad_(True)
    batch = family.batch(range(4))
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(**batch).loss
    assert keep_copies(model, "bf16") > 0
    layers = compiled_layers(model)
    stacks = {type(layer) for layer in layers}
    assert len(layers) > len(stacks) >= 1
    torch._dynamo.utils.counters.clear()
    for layer in layers:
        layer.compile(backend="eager", fullgraph=True)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            compiled = model(**batch).loss
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(stacks)
        assert torch.equal(compiled, plain)
        compiled.backward()
        assert all(each.grad is not None for each in model.projector.parameters())
        with beside_training():
            assert torch.equal(model(**batch).loss, model(**batch).loss)
    finally:
        release_copies(model)
        forget_compiled(model)
    assert all(each._compiled_call_impl is None for each in model.modules())


def test_layers_that_repeat_are_compiled_and_an_encoder_without_any_as_one():
    for name, family in FAMILIES.items():
        layers = compiled_layers(family.model())
        assert layers, name
        assert len(set(map(id, layers))) == len(layers)


@pytest.mark.slow
def test_a_contrastive_step_is_compared_by_its_embeddings(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="mmhf")
    family = FAMILIES["dual_encoder"]
    stages = [Stage(name="projections", steps=1, train="projections")]
    family.trainer(family.model(), tmp_path, stages=stages, use_cpu=True, **COMPILED).train()
    (line,) = told_of_compiling(caplog)
    assert line.startswith("Stage projections: ") and "equal to the plain model within" in line


def test_another_result_than_the_plain_models_ends_the_run():
    stage = CompiledStage(torch.nn.Linear(2, 2), Compiling("eager"), "no", "head")
    stage.expect(lambda: torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="stage head: the compiled model differs from the plain one by 0.1"):
        stage.compare(torch.tensor(1.1))
    stage.expect(lambda: torch.tensor(1.0))
    stage.compare(torch.tensor(5.0))  # only the first pass is compared


def test_what_draws_random_numbers_is_not_compared(caplog):
    caplog.set_level(logging.INFO, logger="mmhf")
    stage = CompiledStage(torch.nn.Linear(2, 2), Compiling("eager"), "bf16", "head")
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    stage.expect(lambda: torch.rand(()))
    stage.compare(torch.tensor(100.0))
    assert "not compared with the plain model" in caplog.text
    assert torch.rand(()) == expected  # nobody else's random numbers are drawn
