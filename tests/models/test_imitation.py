"""What a student's answers cost beside a teacher's: the published formulas, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmhf.models.affinity_loss import affinity_losses
from mmhf.models.classification_loss import ClassificationLoss
from mmhf.models.contrastive_loss import EmbeddedPairs
from mmhf.models.multi_label_loss import MultiLabelLoss
from mmhf.models.ordinal_loss import OrdinalLoss
from mmhf.models.regression_loss import RegressionLoss

ROWS, CLASSES, PAIRS = 6, 4, 11


def numbers(*shape: int, seed: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hinton(answers: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T² · Σ p log (p / q) of each row, with p and q as Hinton et al. define them, equation 1."""
    q, p = ((each / temperature).exp() for each in (answers, taught))
    q, p = q / q.sum(dim=1, keepdim=True), p / p.sum(dim=1, keepdim=True)
    return temperature**2 * (p * (p / q).log()).sum(dim=1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
def test_classes_diverge_as_hinton_says(temperature: float) -> None:
    answers, taught = numbers(ROWS, CLASSES, seed=0), numbers(ROWS, CLASSES, seed=1)
    found = ClassificationLoss().imitation(answers, taught, temperature)
    torch.testing.assert_close(found, hinton(answers, taught, temperature))
    torch.testing.assert_close(ClassificationLoss().imitation(taught, taught, temperature), torch.zeros(ROWS).double())


def test_the_gradient_of_classes_keeps_its_size_at_any_temperature() -> None:
    """As T grows it comes to (z - v) / N for logits of mean 0, as the paper's equation 4 has it."""
    answers, taught = (
        each - each.mean(dim=1, keepdim=True) for each in (numbers(1, 4, seed=0), numbers(1, 4, seed=1))
    )
    answers.requires_grad_()
    ClassificationLoss().imitation(answers, taught, 1e6).sum().backward()
    torch.testing.assert_close(answers.grad, (answers.detach() - taught) / 4, rtol=1e-3, atol=1e-4)


def test_ordered_classes_diverge_as_their_probabilities_do() -> None:
    loss = OrdinalLoss()
    answers, taught = (loss.outputs(numbers(ROWS, 3, seed=seed).sort(descending=True).values) for seed in (0, 1))
    p, q = taught.exp(), answers.exp()
    torch.testing.assert_close(
        loss.imitation(answers, taught, 1.0), (p * (p / q).log()).sum(dim=1), atol=1e-4, rtol=1e-4
    )


def test_labels_are_taught_by_their_probabilities() -> None:
    answers, taught = numbers(ROWS, CLASSES, seed=0), numbers(ROWS, CLASSES, seed=1)
    q, p = 1 / (1 + (-answers).exp()), 1 / (1 + (-taught).exp())
    wanted = -(p * q.log() + (1 - p) * (1 - q).log()).mean(dim=1)
    torch.testing.assert_close(MultiLabelLoss().imitation(answers, taught, 1.0), wanted)


def test_numbers_differ_in_deviations() -> None:
    loss = RegressionLoss([100.0, 0.0], [10.0, 0.5])
    answers, taught = torch.tensor([[120.0, 1.0], [100.0, 0.0]]), torch.tensor([[110.0, 0.0], [100.0, 0.0]])
    assert loss.imitation(answers, taught, 1.0).tolist() == [(1.0 + 4.0) / 2, 0.0]


@pytest.mark.parametrize(
    ("loss", "labels", "known"),
    [
        (ClassificationLoss(), torch.tensor([1, -100, 0]), [True, False, True]),
        (OrdinalLoss(), torch.tensor([1, -100, 0]), [True, False, True]),
        (MultiLabelLoss(), torch.tensor([[1.0, 0.0], [-100.0, -100.0], [-100.0, 1.0]]), [True, False, True]),
        (RegressionLoss([0.0], [1.0]), torch.tensor([3.0, float("nan"), 0.0]), [True, False, True]),
    ],
)
def test_rows_without_a_label_are_not_taught(loss, labels: Tensor, known: list[bool]) -> None:
    assert loss.known(labels).tolist() == known


def make_pairs(width: int, seed: int, *, absent: int | None = None) -> EmbeddedPairs:
    images, texts = (functional.normalize(numbers(PAIRS, width, seed=seed + place), dim=1) for place in (0, 1))
    index = torch.arange(PAIRS)
    if absent is not None:
        index[absent] = -1
    return EmbeddedPairs(images.requires_grad_(), texts.requires_grad_(), index, torch.arange(PAIRS))


@pytest.mark.parametrize("absent", [None, 4])
def test_similarities_diverge_row_by_row_in_both_directions(
    absent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks or at once, the same as on the whole matrices without the pair that takes part in nothing."""
    student, teacher, scale = (
        make_pairs(5, 0, absent=absent),
        make_pairs(9, 7),
        torch.tensor([12.0], requires_grad=True),
    )
    taught = EmbeddedPairs(30 * teacher.image_embeds.detach(), teacher.text_embeds.detach(), *teacher_ids(student))
    kept = [row for row in range(PAIRS) if row != absent]
    own = (12.0 * student.image_embeds @ student.text_embeds.T)[kept][:, kept]
    wanted = (30.0 * teacher.image_embeds @ teacher.text_embeds.T)[kept][:, kept]
    expected = (hinton(own, wanted, 1.5).mean() + hinton(own.T, wanted.T, 1.5).mean()) / 2
    expected_gradient = torch.autograd.grad(expected, student.image_embeds, retain_graph=True)[0]
    for size in (3, PAIRS):
        monkeypatch.setattr("mmhf.models.affinity_loss.block_size", lambda num_pairs, size=size: size)
        parts = list(affinity_losses(student, taught, scale, temperature=1.5, rows=range(PAIRS)))
        assert len(parts) == -(-PAIRS // size)
        total = torch.stack(parts).sum()
        torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-5)
        gradient = torch.autograd.grad(total, student.image_embeds)[0]
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)


def teacher_ids(student: EmbeddedPairs) -> tuple[Tensor, Tensor]:
    return student.image_index, student.caption_id


def test_a_student_that_finds_the_same_pairs_alike_has_nothing_to_learn() -> None:
    pairs = make_pairs(5, 0)
    taught = EmbeddedPairs(12 * pairs.image_embeds.detach(), pairs.text_embeds.detach(), *teacher_ids(pairs))
    (loss,) = affinity_losses(pairs, taught, torch.tensor([12.0]), temperature=1.0, rows=range(PAIRS))
    assert abs(loss.item()) < 1e-6
