"""A teacher's stored answers in the loss of a step: by the formula, and however the step is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_families import FAMILIES, TinyFamily
from torch import Tensor
from torch.nn import functional

from mmhf.training.distillation import Imitation, Teaching
from mmhf.training.stages import Stage

STAGES = [Stage(name="head", steps=2, train=["head"], learning_rate=0.1)]


def taught(row: int) -> Tensor:
    return 2 * torch.randn(2, generator=torch.Generator().manual_seed(row))


class Taught(TinyFamily):
    """A family whose batches have a teacher's answers; each fifth row lacks its label."""

    def _sample(self, index: int) -> dict[str, Tensor]:
        sample = super()._sample(index)
        sample["labels"] = sample["labels"] if index % 5 else torch.tensor(-100)
        return {**sample, "teacher_answers": taught(index)}


def losses(folder: Path, teaching: Teaching | None, *, size: int, accumulation: int, name: str) -> list[float]:
    family = Taught(**vars(FAMILIES[name]))
    trainer = family.trainer(
        family.model(),
        folder,
        stages=STAGES,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        use_cpu=True,
    )
    trainer.teaching = teaching
    trainer._imitation = Imitation.of(trainer.plan.model, teaching)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("order", [None, (1, 0)])
def test_a_step_has_the_loss_of_the_formula(order: tuple[int, int] | None, tmp_path: Path) -> None:
    weight, temperature = 0.3, 3.0
    teaching = Teaching(weight, temperature, order)
    (first, _) = losses(tmp_path, teaching, size=24, accumulation=1, name="image_classifier")
    family = Taught(**vars(FAMILIES["image_classifier"]))
    batch, model = family.batch(range(24)), family.model().train()
    model.vision.eval()  # frozen in this stage
    wanted = batch.pop("teacher_answers")[:, list(order or (0, 1))]
    logits, known = model(batch["pixel_values"]).logits, batch["labels"] >= 0
    assert not known.all()
    logits, wanted, labels = logits[known], wanted[known], batch["labels"][known]
    p, q = (wanted / temperature).softmax(dim=1), (logits / temperature).softmax(dim=1)
    soft = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    expected = (1 - weight) * functional.cross_entropy(logits, labels) + weight * soft
    assert first == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("name", ["image_classifier", "fusion"])
def test_micro_batches_are_one_step(name: str, tmp_path: Path) -> None:
    """8 rows have other numbers of labels in each micro-batch."""
    teaching = Teaching(0.5, 2.0)
    whole = losses(tmp_path / "whole", teaching, size=8, accumulation=1, name=name)
    cut = losses(tmp_path / "cut", teaching, size=2, accumulation=4, name=name)
    assert cut == pytest.approx(whole, abs=1e-4)
    assert losses(tmp_path / "own", None, size=8, accumulation=1, name=name) != pytest.approx(whole, abs=1e-2)


def test_processes_share_the_rows_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, whose gradients are averaged, have together what one has that takes all rows."""
    model = FAMILIES["image_classifier"].model()
    labels, answers, own = torch.tensor([0, 1, -100, 1]), torch.randn(4, 2), torch.zeros(())
    teachers = torch.stack([taught(row) for row in range(4)])
    imitation = Imitation.of(model, Teaching(1.0, 2.0))
    assert imitation is not None
    imitation.begin_step([{"labels": labels}], lambda count: count)
    whole = imitation.beside(own, answers, teachers, labels)
    monkeypatch.setattr("mmhf.training.distillation.world_size", lambda: 2)
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        imitation.begin_step([{"labels": labels[rows]}], lambda count: torch.tensor(3))
        parts.append(imitation.beside(own, answers[rows], teachers[rows], labels[rows]))
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_without_a_teacher_nothing_is_imitated() -> None:
    for name, family in FAMILIES.items():
        assert Imitation.of(family.model(), None) is None, name
    assert Imitation.of(FAMILIES["dual_encoder"].model(), Teaching(0.5, 1.0)) is None
