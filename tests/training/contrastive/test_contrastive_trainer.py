from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from mmhf.conventions import IGNORED_IMAGE
from mmhf.errors import InputError
from mmhf.models.dual_encoder import DualEncoderModel
from mmhf.models.dual_encoder.dropping import drop_at_random
from mmhf.recipe.dual_encoder_recipe import VisionTowerSection
from mmhf.training.distillation import Teaching
from mmhf.training.stages import Stage

Make = Callable[..., DualEncoderModel]


def weights(model: DualEncoderModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance: float) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "teaching"),
    [({}, None), ({"loss": "sigmoid", "logit_bias": -3.0}, None), ({}, Teaching(0.6, 1.5))],
    ids=["softmax", "sigmoid", "taught"],
)
def test_micro_batches_train_what_one_batch_trains(
    tiny_model: Make, rows_of, trainer_of, tmp_path: Path, values: dict, teaching: Teaching | None
) -> None:
    """16 pairs a step, three steps an epoch: at once, in micro-batches of 4, and by Trainer's own accumulation."""
    trained, logged = [], []
    for arguments in (
        {"per_device_train_batch_size": 16},
        {"per_device_train_batch_size": 4, "batch_size": 16},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    ):
        trainer = trainer_of(tiny_model(**values), rows_of(44), tmp_path, teaching=teaching, **arguments)
        assert (trainer.args.max_steps, trainer.args.gradient_accumulation_steps) in ((6, 1), (6, 4), (6, 2))
        trainer.train()
        assert trainer.state.global_step == 6
        trained.append(weights(trainer.model))
        logged.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    start = weights(tiny_model(**values))
    assert all(not torch.equal(value, start[name]) for name, value in trained[0].items() if "key.bias" not in name)
    for other in (1, 2):
        assert logged[other] == pytest.approx(logged[0], abs=1e-4)
        assert_same(trained[other], trained[0], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_stage_s_own_batch_size_keeps_the_pairs_of_a_step(
    tiny_model: Make, rows_of, trainer_of, tmp_path: Path
) -> None:
    def stages(size: int | None) -> list[Stage]:
        first = Stage(name="projections", epochs=1.0, train=["projections", "temperature"], learning_rate=0.5)
        return [first.model_copy(update={"batch_size": size}), Stage(name="all", epochs=1.0, learning_rate=0.5)]

    plain = trainer_of(tiny_model(), rows_of(32), tmp_path / "a", stages=stages(None), batch_size=16)
    plain.train()
    own = trainer_of(tiny_model(), rows_of(32), tmp_path / "b", stages=stages(16), batch_size=16)
    assert own.args.max_steps == plain.args.max_steps == 4
    own.train()
    assert_same(weights(own.model), weights(plain.model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "stop_at", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 4]
)
def test_a_run_with_caching_and_stages_resumes_bit_by_bit(
    tiny_model: Make, rows_of, trainer_of, tmp_path: Path, stop_at: int
) -> None:
    stages = [
        Stage(name="text", epochs=1.0, train=["text", "projections"], learning_rate=0.1, batch_size=8),
        Stage(name="all", epochs=1.0, learning_rate=0.1),
    ]
    options = {"stages": stages, "batch_size": 16, "save_strategy": "steps", "save_steps": 1}

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            control.should_training_stop = state.global_step >= stop_at

    def make() -> DualEncoderModel:
        return drop_at_random(tiny_model(dropout=0.2), VisionTowerSection(patch_dropout=0.5))

    whole = trainer_of(make(), rows_of(48), tmp_path / "whole", **options)
    whole.train()
    trainer_of(make(), rows_of(48), tmp_path / "cut", callbacks=[Stop()], **options).train()
    resumed = trainer_of(make(), rows_of(48), tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{stop_at}"))
    assert whole.state.global_step == resumed.state.global_step == 6
    assert_same(weights(resumed.model), weights(whole.model), atol=0, rtol=0)
    kept = ("step", "loss", "temperature", "repeated_images")
    one, other = (
        [{key: entry[key] for key in kept} for entry in trainer.state.log_history if "loss" in entry]
        for trainer in (whole, resumed)
    )
    assert one == other


def test_what_was_counted_is_logged(tiny_model: Make, rows_of, trainer_of, tmp_path: Path) -> None:
    images = [0, 0, 0, 3, 4, 5, IGNORED_IMAGE, 7]
    trainer = trainer_of(
        tiny_model(),
        rows_of(8, images),
        tmp_path,
        batch_size=8,
        stages=[Stage(name="all", steps=1, learning_rate=0.0)],
    )
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["temperature"] == pytest.approx(0.2)
    assert entry["repeated_images"] == pytest.approx(2 / 7)
    assert entry["repeated_captions"] == 0
    assert entry["skipped_pairs"] == 1


def test_one_pair_has_nothing_to_be_contrasted_with(tiny_model: Make, rows_of, trainer_of, tmp_path: Path) -> None:
    model = tiny_model()
    before = weights(model)
    trainer = trainer_of(model, rows_of(1), tmp_path)
    trainer.train()
    assert [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] == [0.0, 0.0]
    assert_same(weights(trainer.model), before, atol=0, rtol=0)


@pytest.mark.slow
def test_a_temperature_that_explodes_is_held(tiny_model: Make, rows_of, trainer_of, tmp_path: Path) -> None:
    stages = [Stage(name="t", steps=2, train="temperature", learning_rate=1e6)]
    for start, bound in ((0.2, math.log(100)), (0.9, 0.0)):
        model = tiny_model()
        with torch.no_grad():
            model.logit_scale.fill_(-math.log(start))
        trainer_of(model, rows_of(8), tmp_path, stages=stages, batch_size=8).train()
        assert 0.0 <= model.logit_scale.item() <= math.log(100) + 1e-6
        assert model.logit_scale.item() in (pytest.approx(math.log(100)), 0.0), bound


@pytest.fixture
def poisoned_after() -> Iterator[Callable[..., TrainerCallback]]:
    def make(step: int, name: str) -> TrainerCallback:
        class Poison(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
                if state.global_step == step:
                    with torch.no_grad():
                        dict(model.named_parameters())[name].fill_(torch.nan)

        return Poison()

    yield make


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_and_says_where(
    tiny_model: Make, rows_of, trainer_of, poisoned_after, tmp_path: Path, batch_size: int | None
) -> None:
    """The weights become NaN after checkpoint-2, which is the last good one."""
    trainer = trainer_of(
        tiny_model(),
        rows_of(16),
        tmp_path,
        batch_size=batch_size,
        save_strategy="steps",
        save_steps=2,
        callbacks=[poisoned_after(3, "vision_projection.weight")],
    )
    with pytest.raises(
        InputError, match=r"step 4, stage \w+: the loss is nan; rows whose embeddings are not finite: pair"
    ) as raised:
        trainer.train()
    message = str(raised.value)
    assert f"last good checkpoint: {tmp_path / 'checkpoint-2'};" in message
    assert "\n" not in message
    ids = (tmp_path / "bad_batch.txt").read_text().split()
    assert len(ids) == (batch_size or 4)
    assert set(ids) <= {f"pair{index}" for index in range(16)}
    assert ids[0] in message


def test_evaluation_gives_embeddings_and_the_images_they_belong_to(
    tiny_model: Make, rows_of, trainer_of, tmp_path: Path
) -> None:
    seen = {}

    def metrics(prediction):
        seen["texts"], seen["images"] = prediction.predictions
        seen["index"] = prediction.label_ids
        return {"rows": float(len(prediction.label_ids))}

    trainer = trainer_of(tiny_model(), rows_of(10), tmp_path, per_device_eval_batch_size=4)
    trainer.compute_metrics = metrics
    measured = trainer.evaluate()
    assert measured["eval_rows"] == 10
    assert 0 < measured["eval_loss"] < 3
    assert seen["index"].tolist() == list(range(10))
    assert seen["texts"].shape == seen["images"].shape == (10, 8)


def test_two_passes_that_differ_are_reported(tiny_model: Make, rows_of, trainer_of, tmp_path: Path) -> None:
    model = tiny_model()
    calls = iter(range(1000))
    model.vision_projection.register_forward_hook(lambda module, inputs, output: output.roll(next(calls), dims=1))
    with pytest.raises(RuntimeError, match="the two passes of gradient caching differ by"):
        trainer_of(model, rows_of(8), tmp_path, batch_size=8).train()


def test_two_passes_of_what_a_later_stage_thaws_are_compared_too(
    tiny_model: Make, rows_of, trainer_of, tmp_path: Path
) -> None:
    model = tiny_model()
    calls = iter(range(1000))

    def drop_its_own_way(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output.roll(next(calls), dims=2) if module.training else output

    model.text.embeddings.register_forward_hook(drop_its_own_way)
    stages = [
        Stage(name="projections", epochs=1.0, train=["projections", "temperature"], learning_rate=0.5),
        Stage(name="all", epochs=1.0, learning_rate=0.5),
    ]
    trainer = trainer_of(model, rows_of(16), tmp_path, batch_size=8, stages=stages)
    with pytest.raises(RuntimeError, match="the two passes of gradient caching differ by"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_batches_that_do_not_come_out_even_are_refused(tiny_model: Make, rows_of, trainer_of, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"contrastive\.batch_size: 8 is no multiple of 16 pairs a batch × 1 processes"
    ):
        trainer_of(tiny_model(), rows_of(8), tmp_path, batch_size=8, per_device_train_batch_size=16)


def test_a_micro_batch_is_embedded_while_later_ones_are_still_to_be_read(
    tiny_model: Make, rows_of, trainer_of, tmp_path: Path
) -> None:
    events: list[str] = []
    model = tiny_model()
    model.register_forward_pre_hook(lambda *_: events.append("embed" if not torch.is_grad_enabled() else "train"))
    trainer = trainer_of(
        model, rows_of(16), tmp_path, batch_size=16, stages=[Stage(name="all", steps=1, learning_rate=0.1)]
    )
    collate = trainer.data_collator

    def read(rows):
        events.append("read")
        return collate(rows)

    trainer.data_collator = read
    trainer.train()
    # accelerate reads one batch ahead.
    assert events == ["read", "read", "read", "embed", "read", "embed", "embed", "train", "train", "train", "train"]
