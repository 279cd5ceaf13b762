"""Answers to questions: their normal form, and exact match and VQA accuracy against the formulas written out."""

from __future__ import annotations

import random

import evaluate
import numpy as np
import pytest

from mmhf.evaluation.captions.answers import exact_matches, normal_answer, vqa_accuracies
from mmhf.evaluation.captions.evaluate_metrics import ExactMatch, VqaAccuracy
from mmhf.evaluation.captions.metrics import CAPTION_PROTOCOLS, caption_metrics, evaluate_captions


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("A Dog.", "dog"),
        ("the  two\ndogs", "2 dogs"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("Couldnt've", "couldn't've"),
        ("shed've", "she'd've"),
        ("shes", "shes"),
        ("somebody'd", "somebodyd"),
        ("yall'd've", "y'all'd've"),
        ("don't", "don't"),
        ("red, white", "red white"),
        ("red/white", "red white"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("3.5 m.", "3.5 m"),
        ("10:30", "10:30"),
        ("dog's bone!", "dog's bone"),
        ("t-shirt", "t shirt"),
        ("- t-shirt", "tshirt"),
        ("", ""),
        ("the", ""),
    ],
)
def test_an_answer_is_compared_in_the_form_of_the_vqa_evaluation(given: str, expected: str) -> None:
    assert normal_answer(given) == expected


def _left_out(answer: str, known: list[str]) -> float:
    """The formula of Antol et al., person by person."""
    turns = [known[:at] + known[at + 1 :] for at in range(len(known))]
    return float(np.mean([min(sum(other == answer for other in others) / 3, 1) for others in turns]))


def test_vqa_accuracy_is_the_mean_over_the_people_left_out() -> None:
    draw = random.Random(0)
    words = ["red", "blue", "green"]
    predictions = [draw.choice(words) for _ in range(200)]
    references = [[draw.choice(words) for _ in range(draw.randint(1, 10))] for _ in predictions]
    expected = [_left_out(*pair) for pair in zip(predictions, references, strict=True)]
    np.testing.assert_allclose(vqa_accuracies(predictions, references), expected, atol=1e-12)
    # Ten people, of whom this many gave the answer: 0.3 a person up to 0.9, then 1.
    scores = vqa_accuracies(["yes"] * 5, [["Yes."] * count + ["no"] * (10 - count) for count in range(5)])
    np.testing.assert_allclose(scores, [0, 0.3, 0.6, 0.9, 1.0])


def test_exact_match_is_in_the_normal_form_and_any_reference_counts() -> None:
    scores = exact_matches(
        ["the two dogs", "a cat", "", "blue"], [["2 dogs"], ["dog", "Cat!"], ["dog"], ["light blue"]]
    )
    assert scores.tolist() == [1, 1, 0, 0]


def test_answers_are_measured_where_they_are_asked_for() -> None:
    predictions, references = ["yes", "two"], [["yes"] * 10, ["2"] * 2 + ["3"] * 8]
    numbers = caption_metrics(predictions, references, answers=True)
    assert (numbers["exact_match"], numbers["vqa_accuracy"]) == pytest.approx((1.0, 0.8))
    assert not {"exact_match", "vqa_accuracy"} & caption_metrics(predictions, references).keys()
    both = evaluate.combine([ExactMatch(), VqaAccuracy()])
    assert both.compute(predictions=predictions, references=references) == pytest.approx(
        {name: numbers[name] for name in ("exact_match", "vqa_accuracy")}
    )
    measured = evaluate_captions(predictions, references, answers=True, resamples=20)
    assert {"exact_match", "vqa_accuracy"} <= measured.intervals.keys() & measured.per_image.keys()
    few = evaluate_captions(["yes"], [["yes"] * 3], answers=True, resamples=0)
    assert few.undefined["vqa_accuracy"] == "a question has fewer than 4 answers"
    assert few.metrics["exact_match"] == 1 and "vqa_accuracy" not in few.metrics
    assert "Antol" in CAPTION_PROTOCOLS["vqa_accuracy"]
    plain = evaluate_captions(["yes"], [["yes"]], resamples=0)
    assert not {"exact_match", "vqa_accuracy"} & plain.undefined.keys()
