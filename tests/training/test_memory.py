"""What a step needs, how much fits at once, and what is said where memory runs out."""

from __future__ import annotations

import pytest
import torch
from tiny_families import FAMILIES

from mmhf.errors import InputError
from mmhf.features.choice import measure_shapes
from mmhf.recipe import recipe_from_dict
from mmhf.training import memory
from mmhf.training.arguments import fit_micro_batch, training_arguments
from mmhf.training.memory import (
    GIB,
    MemoryEstimate,
    estimate_memory,
    fits_at_once,
    largest_share,
    saved_activations,
    shortage_named,
)
from mmhf.training.plan import describe_stages
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.weights import apply_freezing


def estimate(name, count, precision="no"):
    family = FAMILIES[name]
    model = family.model()
    plan = StagePlan.build(model, [Stage(name="all", steps=1)], steps_per_epoch=1)
    apply_freezing(model, plan.partition, plan.stages[0].curves)
    batch = {key: value for key, value in family.batch(range(count)).items() if key != "image_index"}
    return estimate_memory(plan, plan.stages[0], batch, state_values=2, precision=precision)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.slow
def test_what_is_not_shared_grows_with_the_batch(name, precision):
    few, more = estimate(name, 7, precision), estimate(name, 14, precision)  # no width of any layer
    assert (few.weights, few.gradients, few.optimizer) == (more.weights, more.gradients, more.optimizer)
    assert more.shared == pytest.approx(few.shared, abs=0.05 * few.activations)  # small layers are alike by chance
    assert more.activations - more.shared == pytest.approx(2 * (few.activations - few.shared), rel=0.1)
    assert few.shared > 0.05 * few.activations or precision == "no"


@pytest.mark.slow
def test_low_precision_takes_less():
    plain, low = estimate("dual_encoder", 8), estimate("dual_encoder", 8, "bf16")
    assert 0.4 < (low.activations - low.shared) / plain.activations < 0.8


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_a_plan_does_not_run_frozen_encoders(name, monkeypatch):
    """What their features take is known from one sample, and it is what running them for the batch says."""
    family = FAMILIES[name]
    # Not "cls", which is a view that keeps all tokens alive.
    model = family.model(**({"vision_pooling": "avg"} if name == "dual_encoder" else {})).to("meta")
    stages = [Stage(name="head", steps=1, train=list(family.head)), Stage(name="all", steps=1, train="all")]
    plan = StagePlan.build(model, stages, steps_per_epoch=1)
    batch = {key: value.to("meta") for key, value in family.batch(range(4)).items() if key != "image_index"}
    sample = {key: value[:1] for key, value in batch.items()}
    given = []

    def saved(model, inputs, precision="no"):
        given.append(set(inputs))
        return saved_activations(model, inputs, precision)

    monkeypatch.setattr(memory, "saved_activations", saved)
    whole, short = (
        describe_stages(plan, batch, state_values_per_parameter=2, measure=measure)
        for measure in (lambda part: None, lambda part: measure_shapes(model, part, sample))
    )
    assert [stage.memory for stage in whole] == [stage.memory for stage in short]
    assert given[0] == given[1] == given[3] == set(batch)
    assert "pixel_values" not in given[2]
    assert {"image_features"} <= given[2]


def test_how_many_fit(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda device: 10 * GIB)
    needs = MemoryEstimate(weights=GIB, gradients=GIB, optimizer=2 * GIB, activations=3 * GIB, shared=GIB)
    assert fits_at_once(needs, 8, torch.device("cuda")) == 14  # 8.5 - 4 - 1 GiB, at a quarter of a GiB each
    assert fits_at_once(needs, 8, torch.device("cpu")) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert fits_at_once(needs, 8, torch.device("cpu")) == 0
    monkeypatch.setattr(memory, "device_memory", lambda device: None)
    assert fits_at_once(needs, 8, torch.device("mps")) is None


def test_a_container_has_the_memory_of_its_quota(monkeypatch, tmp_path):
    there = memory.device_memory(torch.device("cpu"))
    assert there > GIB // 4
    quota = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_QUOTA_FILE", quota)
    for text, expected in (("1048576", 1048576), ("max", None), (str(2**60), None)):
        quota.write_text(f"{text}\n")
        found = memory.device_memory(torch.device("cpu"))
        assert found == expected if expected else found > GIB // 4


@pytest.mark.parametrize(("total", "fits", "share"), [(4096, 731, 512), (12, 5, 4), (7, 6, 1), (8, 0, 1), (8, 99, 8)])
def test_the_largest_share_that_fits(total, fits, share):
    assert largest_share(total, fits) == share


SHORTAGES = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=["python", "cuda", "cpu"])
def test_a_shortage_is_one_line_with_a_way_out(error):
    with pytest.raises(InputError, match=r"^lower the key \(.+\)$") as caught, shortage_named(lambda: "lower the key"):
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), shortage_named(lambda: "lower the key"):
        raise RuntimeError("shapes do not fit")


def test_a_killed_reader_is_named():
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(InputError, match="lower training.dataloader_num_workers"), shortage_named(lambda: "a key"):
        raise killed


def trainer_without_memory(tmp_path, monkeypatch, where, **stage):
    family = FAMILIES["image_classifier"]
    model = family.model()
    trainer = family.trainer(model, tmp_path, stages=[Stage(name="only", epochs=1.0, **stage)], use_cpu=True)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer, where, fail)
    return trainer


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {},
            "stage only: memory ran out on the cpu device, in batches of 4; lower training.per_device_train_batch_",
        ),
        ({"batch_size": 6}, "in batches of 6; lower stages.0.batch_size to 3"),
        ({"batch_size": 1, "batch_norm": "frozen"}, "in batches of 1; set training.gradient_checkpointing: true"),
    ],
)
@pytest.mark.slow
def test_training_names_the_key_to_change(stage, message, tmp_path, monkeypatch):
    trainer = trainer_without_memory(tmp_path, monkeypatch, "compute_loss", **stage)
    with pytest.raises(InputError, match=message):
        trainer.train()


def test_evaluation_names_its_own_key(tmp_path, monkeypatch):
    trainer = trainer_without_memory(tmp_path, monkeypatch, "prediction_step")
    with pytest.raises(InputError, match=r"in batches of 8; lower training.per_device_eval_batch_size"):
        trainer.evaluate(FAMILIES["image_classifier"].rows(4))


def contrastive(**training):
    recipe = recipe_from_dict(
        {"task": "contrastive", "data": {"source": "sample"}, "contrastive": {"batch_size": 48}, "training": training},
        name="tiny",
    ).recipe
    return recipe, training_arguments(recipe, "run", has_validation=False)


def fitted(monkeypatch, fits, **training):
    """The micro-batch and accumulation where so many pairs fit."""
    monkeypatch.setattr("mmhf.training.arguments.fits_at_once", lambda *_: fits)
    family = FAMILIES["dual_encoder"]
    recipe, args = contrastive(use_cpu=True, **training)
    chosen = fit_micro_batch(
        recipe, args, family.model(), lambda count: {
            key: value for key, value in family.batch(range(count)).items() if key != "image_index"
        }
    )  # fmt: skip
    return args.per_device_train_batch_size, args.gradient_accumulation_steps, chosen


@pytest.mark.slow
def test_a_micro_batch_that_is_left_open_is_the_largest_that_fits(monkeypatch):
    assert fitted(monkeypatch, 1000) == (48, 1, "all 48 pairs of a device at once, which fit")
    assert fitted(monkeypatch, 20) == (16, 3, "16 of a device's 48 pairs; about 20 fit in stage train")
    assert fitted(monkeypatch, None)[:2] == (48, 1)
    assert fitted(monkeypatch, 20, per_device_train_batch_size=4) == (4, 12, None)
    with pytest.raises(InputError, match="not even one pair fits into the memory of the cpu device"):
        fitted(monkeypatch, 0)
