from __future__ import annotations

import random

import numpy as np
import pytest

from mmhf.evaluation.captions import (
    best_constant_caption,
    frequent_answers,
    nearest_answers,
    nearest_neighbour_captions,
)
from mmhf.evaluation.captions.answers import most_frequent_answer
from mmhf.evaluation.captions.rouge import rouge_scores


def rouge_l(caption: str, references: list[list[str]]) -> float:
    return float(rouge_scores([caption] * len(references), references)["rougeL"].mean())


def test_the_best_constant_caption_is_found_among_all(thousand_images):
    references = thousand_images.references[:60]
    texts = sorted({text for of_image in references for text in of_image})
    scores = [rouge_l(text, references) for text in random.Random(0).sample(texts, 40)]
    best = rouge_l(best_constant_caption(references), references)
    assert best >= max(scores) - 1e-12
    assert best > np.mean(scores) + 0.02


def test_few_candidates_are_the_promising_ones(thousand_images):
    references = thousand_images.references[:300]
    everything, few = (best_constant_caption(references, max_candidates=count) for count in (10_000, 60))
    assert rouge_l(few, references) > rouge_l(everything, references) - 0.02


@pytest.mark.parametrize("references", [[], [["a"], []]])
def test_the_best_constant_caption_needs_captions(references):
    with pytest.raises(ValueError, match="each with a caption"):
        best_constant_caption(references)


def test_captions_that_rouge_score_cannot_read_are_no_obstacle():
    assert best_constant_caption([["狗"], ["猫 🐈"]]) == "狗"


def test_long_captions_count_up_to_their_64th_word():
    long = " ".join(f"w{at}" for at in range(200))
    assert best_constant_caption([[long], [long + " more"], ["a dog"]]) in {long, long + " more"}


def test_the_nearest_neighbour_is_by_angle():
    known = [[1.0, 0.0], [0.0, 1.0], [-3.0, -3.0]]
    captions = [["right", "to the right"], "up", ["down"]]
    asked = [[0.1, 5.0], [9.0, 1.0], [-1.0, -0.9]]
    assert nearest_neighbour_captions(known, captions, asked) == ["up", "right", "down"]


def test_nearest_neighbours_of_many_rows_equal_one_by_one():
    generator = np.random.default_rng(0)
    known, asked = generator.normal(size=(50, 8)), generator.normal(size=(2100, 8))
    captions = [str(number) for number in range(50)]
    found = nearest_neighbour_captions(known, captions, asked)
    cosines = (asked / np.linalg.norm(asked, axis=1, keepdims=True)) @ (
        known / np.linalg.norm(known, axis=1, keepdims=True)
    ).T
    assert found == [str(number) for number in cosines.argmax(axis=1)]


@pytest.mark.parametrize(("known", "asked"), [(np.ones((2, 3)), np.ones((1, 3))), (np.ones((1, 3)), np.ones((1, 4)))])
def test_features_that_do_not_fit_are_refused(known, asked):
    with pytest.raises(ValueError, match="expected features"):
        nearest_neighbour_captions(known, ["one"], asked)


def test_the_most_frequent_answer_is_counted_in_its_normal_form():
    assert most_frequent_answer(["no", "Yes.", "yes", "no", "a yes"]) == "Yes."
    assert most_frequent_answer(["two", "one", "2", "1"]) == "two"
    with pytest.raises(ValueError):
        most_frequent_answer([])


def test_the_frequent_answer_is_that_to_the_same_question_and_else_to_any():
    asked = ["is it red?", "what is it?", "is it red?", "what is it?"]
    answers = [["yes", "yes"], ["frog"], ["no", "no", "no", "yes"], ["lamp", "frog"]]
    assert frequent_answers(asked, answers, ["what is it?", "is it red?", "why?"]) == ["frog", "yes", "yes"]
    assert frequent_answers(asked[1:], answers[1:], ["is it red?", "how?"]) == ["no", "no"]


def test_the_nearest_answer_is_that_to_the_same_question_and_else_to_any():
    features = [[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]]
    asked = ["what is it?", "what is it?", "is it red?", "is it red?"]
    answers = [["toad", "frog", "frog"], ["lamp"], ["yes"], ["no"]]
    images = [[1.0, 0.1], [0.1, 1.0], [0.1, 1.0], [-2.0, 0.5], [1.0, -0.2]]
    questions = ["what is it?", "what is it?", "is it red?", "is it red?", "why?"]
    assert nearest_answers(features, asked, answers, images, questions) == ["frog", "lamp", "yes", "no", "frog"]
