"""Captions of the nearest training images, as the prompt that they make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import cosine_similarity, cross_entropy

from mmhf.models.captioner import PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.neighbours import Neighbours, NeighbourVotes

BEFORE, BETWEEN, AFTER = [50, 51], [52], [53, 54, 55]
TEXTS = {"before": BEFORE, "between": BETWEEN, "after": AFTER}
CAPTIONS = st.lists(st.lists(st.integers(0, 40), max_size=5), min_size=1, max_size=9)


def filled(captions: list[list[int]], features: Tensor, count: int = 2, rows: Tensor | None = None) -> Neighbours:
    length = max(1, *map(len, captions)) if len(captions) > 1 else max(1, len(captions[0]))
    made = Neighbours({"count": count, "rows": len(captions), "length": length, **TEXTS}, features.shape[1])
    made.fill(features, captions, torch.arange(len(captions)) if rows is None else rows)
    return made


@settings(max_examples=60, deadline=None)
@given(captions=CAPTIONS, count=st.integers(1, 4), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_prompts_are_the_captions_of_the_most_alike_in_order(captions, count, batch, seed):
    torch.manual_seed(seed)
    known, asked = torch.randn(len(captions), 6), torch.randn(batch, 6)
    prompts, mask, _ = filled(captions, known, count)(asked)
    for row, (ids, seen) in enumerate(zip(prompts, mask, strict=True)):
        nearest = cosine_similarity(asked[row], known).argsort(descending=True)[:count].tolist()
        expected = list(BEFORE)
        for place in nearest[:-1]:
            expected += [*captions[place], *BETWEEN]
        expected += [*captions[nearest[-1]], *AFTER]
        assert ids[seen.bool()].tolist() == expected
        assert seen.tolist() == sorted(seen.tolist()), "padded on the left"
    assert mask.sum(dim=1).max() == prompts.shape[1], "no wider than the longest"


def test_in_training_no_image_is_told_its_own_caption_nor_that_of_its_copy():
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.9, 0.5], [0.0, 1.0]])
    made = filled([[1], [2], [3], [4]], features)
    assert sorted(made.find(features[:1])[1].tolist()[0]) == [0, 1]
    assert made.find(features[:1], torch.tensor([0]))[1].tolist() == [[2, 3]], "the second is the same picture"
    augmented = torch.tensor([[1.0, 0.1]])
    assert sorted(made.find(augmented, torch.tensor([2]))[1].tolist()[0]) == [0, 1], (
        "not itself, whatever it looks like now"
    )


def test_in_training_images_of_the_same_code_are_kept_apart_and_those_of_none_are_not():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    # The first of the table's five rows could not be read, and is not kept.
    made = filled([[1], [2], [3], [4]], features, count=3, rows=torch.tensor([1, 2, 3, 4]))
    made.keep_apart(torch.tensor([7, 0, 0, 1, -1]))
    assert made.find(features[:1], torch.tensor([1]))[1].tolist() == [[2, 3, -1]]
    assert made.find(features[2:3], torch.tensor([3]))[1].tolist() == [[3, 1, 0]]
    assert made.find(features[3:], torch.tensor([4]))[1].tolist() == [[2, 1, 0]]
    assert made.find(features[:1])[1].tolist() == [[0, 1, 2]], "when it does not train, all are found"
    assert "apart" not in made.state_dict()


def test_where_there_are_too_few_nothing_is_made_up():
    made = filled([[1], [2]], torch.eye(2), count=2)
    assert made.find(torch.eye(2)[:1], torch.tensor([0]))[1].tolist() == [[1, -1]]
    prompts, mask, _ = made(torch.eye(2)[:1], torch.tensor([0]))
    assert prompts[mask.bool()].tolist() == [*BEFORE, 2, *BETWEEN, *AFTER], "its own caption is not among them"


def test_images_that_could_not_be_read_are_never_found():
    made = filled([[1], [2], [3]], torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.1]]), rows=torch.tensor([-1, 1, 2]))
    assert sorted(made.find(torch.tensor([[1.0, 0.0]]))[1].tolist()[0]) == [1, 2]


def test_under_autocast_the_nearest_are_still_told_apart_and_votes_mix():
    torch.manual_seed(0)
    known = torch.tensor([1.0] * 16) + 0.05 * torch.randn(40, 16)
    values = {"count": 9, "temperature": 0.01, "weight": 0.5, "end": 0}
    made = Neighbours({"count": 9, "rows": 40, "length": 1, "votes": values, **TEXTS}, 16)
    made.fill(known, [[n % 5] for n in range(40)], torch.arange(40))
    asked = torch.tensor([1.0] * 16) + 0.05 * torch.randn(8, 16)
    found, scores = made.find(asked), torch.randn(8, 60)
    votes, nothing = made.votes(*found), torch.empty(8, 0, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made.find(asked)[1], found[1])
        again = made.votes(*made.find(asked))
        assert votes is not None and again is not None
        for logits in (scores, scores.bfloat16()):
            torch.testing.assert_close(again(nothing, logits), votes(nothing, logits))


def test_patches_count_by_their_average():
    made = filled([[1], [2]], torch.tensor([[1.0, 0.0], [0.0, 1.0]]), count=1)
    patches = torch.tensor([[[5.0, 0.0], [-4.0, 0.0], [0.0, 0.5]]])
    assert made.find(patches)[1].tolist() == made.find(patches.mean(dim=1))[1].tolist() == [[0]]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 12), width=st.integers(2, 8), ridge=st.floats(0.01, 3), seed=st.integers(0, 99))
def test_whitened_features_are_compared_by_the_inverse_of_their_covariance_with_a_ridge(count, width, ridge, seed):
    """Cosines are x C⁻¹ y / (|x| |y|) of centred features, C = covariance + ridge × mean variance."""
    torch.manual_seed(seed)
    known = torch.randn(count, width) * torch.linspace(1, 5, width) + 3
    values = {"count": count, "rows": count, "length": 1, "whiten": ridge, **TEXTS}
    made = Neighbours(values, width)
    made.fill(known, [[1]] * count, torch.arange(count))
    weights = torch.rand(3, count).softmax(dim=1)
    centred = (known - known.mean(dim=0)).double()
    covariance = centred.T @ centred / count
    middle = covariance.trace() / min(count, width)
    inverse = torch.linalg.inv(covariance + ridge * middle * torch.eye(width, dtype=torch.float64))
    asked = weights.double() @ centred
    products = asked @ inverse @ centred.T
    lengths = [torch.einsum("nd,de,ne->n", each, inverse, each).sqrt() for each in (asked, centred)]
    expected = (products / lengths[0][:, None] / lengths[1]).sort(dim=1, descending=True).values
    found, places = made.find(weights @ known)
    torch.testing.assert_close(found, expected.float(), atol=2e-3, rtol=1e-3)
    exact = Neighbours(values, width)
    exact.load_state_dict(made.state_dict())
    assert torch.equal(exact.find(weights @ known)[1], places)


def test_another_number_of_images_is_refused_and_long_captions_are_cut():
    made = Neighbours({"count": 1, "rows": 2, "length": 2, **TEXTS}, 3)
    with pytest.raises(ValueError, match="3 features and 2 captions for 2 images"):
        made.fill(torch.randn(3, 3), [[1], [2]], torch.arange(2))
    made.fill(torch.eye(3)[:2], [[1, 2, 3], [4]], torch.arange(2))
    assert made.captions.tolist() == [[1, 2], [4, -1]]


END = 0
VOTERS = st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=6)
WEIGHT = 0.6


def _votes(captions: list[list[int]], cosines: list[float]) -> NeighbourVotes:
    """Of captions of images that are so similar to the image (1, 0)."""
    values = {"count": len(captions), "temperature": 0.1, "weight": WEIGHT, "end": END}
    made = Neighbours({"count": 1, "rows": len(captions), "length": 4, "votes": values, **TEXTS}, 2)
    angles = torch.tensor(cosines).acos()
    made.fill(torch.stack([angles.cos(), angles.sin()], 1), captions, torch.arange(len(captions)))
    votes = made.votes(*made.find(torch.tensor([[1.0, 0.0], [2.0, 0.0]])))
    assert votes is not None
    return votes


def _shares(captions: list[list[int]], cosines: list[float], written: list[int]) -> Tensor:
    """The votes for each of five tokens, by their definition; all 0 where no caption agrees."""
    votes = torch.zeros(5)
    for ids, cosine in zip(captions, cosines, strict=True):
        ended = [*ids, END]
        if ended[: len(written)] == written and len(ended) > len(written):
            votes[ended[len(written)]] += torch.tensor(cosine / 0.1).exp()
    return votes / votes.sum().clamp(min=1e-30)


@settings(max_examples=100, deadline=None)
@given(captions=VOTERS, written=st.lists(st.integers(0, 3), max_size=5), data=st.data())
def test_captions_that_agree_so_far_vote_by_similarity(captions, written, data):
    cosines = data.draw(st.lists(st.floats(0, 0.9), min_size=len(captions), max_size=len(captions)))
    votes, ids = _votes(captions, cosines), torch.tensor([written, written], dtype=torch.long)
    tokens, shares = votes.along(ids)
    expected = torch.stack([_shares(captions, cosines, written[:n]) for n in range(len(written) + 1)])
    found = torch.zeros(len(written) + 1, 5).scatter_add(1, tokens[1], shares[1])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    share, other = votes.of(functional.pad(ids, (0, 1), value=2))
    heard = expected.sum(dim=1) > 0
    torch.testing.assert_close(share[1], 1 - WEIGHT * heard)
    next_tokens = torch.tensor([*written, 2])[:, None]
    torch.testing.assert_close(other[1], WEIGHT * expected.gather(1, next_tokens)[:, 0], atol=1e-5, rtol=1e-3)
    scores = torch.randn(2, 5)
    scores[1, 4] = -torch.inf
    mixed = votes(ids, scores).exp()
    own = scores.softmax(dim=1)
    torch.testing.assert_close(mixed, share[:, -1:] * own + WEIGHT * expected[-1], atol=1e-5, rtol=1e-3)


def test_in_training_an_image_has_no_vote_on_its_own_caption_nor_have_those_kept_apart():
    values = {"count": 3, "temperature": 0.1, "weight": WEIGHT, "end": END}
    made = Neighbours({"count": 1, "rows": 3, "length": 4, "votes": values, **TEXTS}, 2)
    features = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.4]])
    made.fill(features, [[1], [2], [3]], torch.arange(3))
    first, no_one = torch.tensor([[1.0, 0.1]]), torch.empty(1, 0, dtype=torch.long)
    for codes, expected in (([], {2, 3}), ([5, 5, 6], {3}), ([5, 5, 5], set())):
        made.keep_apart(torch.tensor(codes, dtype=torch.long))
        votes = made.votes(*made.find(first, torch.tensor([0])))
        assert votes is not None
        tokens, shares = votes.along(no_one)
        assert set(tokens[shares > 0].tolist()) == expected
        assert shares.sum() == pytest.approx(1.0 if expected else 0.0)


def test_votes_go_on_from_beginnings_of_any_length_with_beams_and_never_for_what_is_forbidden():
    votes = _votes([[1, 2], [1, 3], [2]], [0.5, 0.5, 0.8])
    votes.padding = torch.tensor([0, 1])
    forbidden = torch.tensor([0.0, 0.0, 0.0, -torch.inf, 0.0])
    mixed = votes(torch.tensor([[1], [4]]), torch.zeros(2, 5)).exp()
    torch.testing.assert_close(mixed[0], torch.tensor([0.08, 0.08, 0.38, 0.38, 0.08]))
    assert mixed[1].argmax() == 2
    assert votes(torch.tensor([[1], [4]]), forbidden.expand(2, 5))[0, 3] == -torch.inf
    beams = votes(torch.tensor([[1, 2], [1, 3], [4, 1], [4, 2]]), torch.zeros(4, 5))
    assert beams.argmax(dim=1).tolist() == [END, END, 2, END] and beams[2, 3] == beams[2, 2]


CAPTIONS_OF_FIVE = [[7], [8, 9], [10, 11, 12], [13], [14, 15]]


@pytest.fixture
def knowing(model: PrefixCaptionerForConditionalGeneration) -> PrefixCaptionerForConditionalGeneration:
    model.keep_neighbours({"count": 2, "rows": 5, "length": 3, "before": [3], "between": [4], "after": [5, 6]})
    torch.manual_seed(0)
    assert model.neighbours is not None
    model.neighbours.fill(torch.randn(5, model.vision_output.width), CAPTIONS_OF_FIVE, torch.arange(5))
    return model.eval()


@torch.no_grad()
def test_a_captioner_reads_them_as_the_prompt_of_each_row(knowing, batch, tmp_path: Path):
    features = knowing.image_features(batch["pixel_values"])
    ids, mask, _ = knowing.neighbours(features)
    prompted = {**batch, "prompt_ids": ids, "prompt_mask": mask}
    loss = knowing(**batch).loss
    torch.testing.assert_close(loss, knowing(**prompted).loss)
    written = knowing.generate(batch["pixel_values"], max_new_tokens=4)
    assert torch.equal(
        written, knowing.generate(batch["pixel_values"], prompt_ids=ids, prompt_mask=mask, max_new_tokens=4)
    )
    knowing.neighbours.voting = {"count": 5, "temperature": 1e-4, "weight": 0.9999, "end": 0}
    places = knowing.neighbours.find(features)[1][:, 0]
    for beams in (1, 2):
        voted = knowing.generate(batch["pixel_values"], max_new_tokens=4, num_beams=beams)
        for ids, place in zip(voted.tolist(), places, strict=True):
            caption = [token for token in knowing.neighbours.captions[place].tolist() if token >= 0]
            assert [*ids, 0][: len(caption) + 1] == [*caption, 0], "votes alone copy the nearest caption"
    first = knowing.neighbours.captions[places, :1]
    begun = knowing.generate(batch["pixel_values"], input_ids=first, max_new_tokens=4)
    assert torch.equal(begun[:, : voted.shape[1]], voted[:, : begun.shape[1]])
    logits = knowing(batch["pixel_values"], batch["input_ids"]).logits
    expected = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(knowing(**batch).loss, expected)
    assert not torch.allclose(expected, loss), "the loss is that of votes and language model together"
    knowing.neighbours.voting = None
    nearest = knowing.neighbours.find(features)[1][:, 0]
    assert not torch.equal(knowing(**batch, image_index=nearest).loss, loss), "in training, others are its neighbours"
    assert knowing.config.neighbours is not None
    knowing.keep_neighbours({**knowing.config.neighbours, "whiten": 1.0})
    knowing.neighbours.fill(torch.randn(5, knowing.vision_output.width), CAPTIONS_OF_FIVE, torch.arange(5))
    loss = knowing(**batch).loss
    knowing.save_pretrained(tmp_path)
    again = PrefixCaptionerForConditionalGeneration.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**batch).loss, loss)
    knowing.keep_neighbours(None)
    assert not torch.equal(knowing(**batch).loss, loss)
