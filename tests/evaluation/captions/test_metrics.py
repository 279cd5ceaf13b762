from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.evaluation.captions import CAPTION_PROTOCOLS, caption_metrics, evaluate_captions
from mmhf.evaluation.intervals import bootstrap_interval

REFERENCES = [
    ["a dog runs in the snow", "the dog is running"],
    ["a red ball on the grass"],
    ["two men sit near water"],
]
ALWAYS = {"rouge1", "rouge2", "rougeL", "rougeL_coco", "bleu1", "bleu2", "bleu3", "bleu4", "cider"}


def test_both_definitions_of_rouge_l_stand_under_their_own_names():
    metrics = caption_metrics(["grinning face"], [["grinning face with big eyes", "smiley"]])
    assert metrics["rougeL"] == pytest.approx(0.571429, abs=1e-6)
    assert metrics["rougeL_coco"] == pytest.approx(0.530435, abs=1e-6)


def test_every_number_has_a_protocol_and_what_is_absent_a_reason():
    evaluation = evaluate_captions(["a dog", "a ball", "men"], REFERENCES, loss=2.5, answers=True)
    assert ALWAYS | {"loss"} <= evaluation.metrics.keys() <= CAPTION_PROTOCOLS.keys()
    assert list(evaluation.metrics) == [name for name in CAPTION_PROTOCOLS if name in evaluation.metrics]
    assert evaluation.metrics.keys() | evaluation.undefined.keys() == CAPTION_PROTOCOLS.keys()
    assert evaluation.undefined["clipscore"] == "no CLIP was given"
    assert (evaluation.num_rows, evaluation.num_references, evaluation.num_empty) == (3, 4, 0)


def test_captions_that_repeat_a_reference_score_best():
    perfect = caption_metrics([of_image[0] for of_image in REFERENCES], REFERENCES)
    for name in ALWAYS - {"cider"}:
        assert perfect[name] == pytest.approx(1, abs=1e-6)
    shuffled = caption_metrics([REFERENCES[1][0], REFERENCES[2][0], REFERENCES[0][0]], REFERENCES)
    assert all(shuffled[name] < perfect[name] for name in ALWAYS)


@pytest.mark.parametrize("empty", ["", "  \n", " . ! ", "..."])
def test_empty_captions_score_0(empty):
    evaluation = evaluate_captions([empty] * 3, REFERENCES)
    assert all(evaluation.metrics[name] == 0 for name in ALWAYS)
    assert all((evaluation.per_image[name] == 0).all() for name in ALWAYS)
    assert evaluation.intervals == dict.fromkeys(evaluation.intervals, (0.0, 0.0))
    assert evaluation.num_empty == 3


def test_empty_captions_score_0_against_references_of_punctuation_too():
    metrics = caption_metrics(["", "."], [["!"], ["...", "a dog"]])
    assert all(metrics[name] == 0 for name in ALWAYS)


def test_no_image_is_no_number_and_no_exception():
    evaluation = evaluate_captions([], [], loss=1.0)
    assert evaluation.metrics == {"loss": 1.0}
    assert set(evaluation.undefined.values()) == {"there is no image"}


@pytest.mark.parametrize(
    ("caption", "other"),
    [
        ("一只狗在草地上奔跑", "一只猫在沙发上睡觉"),
        ("كلب يركض على العشب", "قطة تنام هنا"),
        ("🐕 🏃 🌳 🏞️ 😀", "🐈 💤"),
        ("собака бежит по траве", "кот спит"),
    ],
)
def test_captions_in_any_script_are_told_apart(caption, other):
    references = [[caption], [other], ["a third image"]]
    right = caption_metrics([caption, other, "a third image"], references)
    wrong = caption_metrics([other, caption, "a third image"], references)
    for name in ("rougeL_coco", "bleu1", "cider"):
        assert right[name] > wrong[name] + 0.1


def test_every_metric_but_bleu_is_the_mean_over_images(thousand_images):
    evaluation = evaluate_captions(thousand_images.predictions[:100], thousand_images.references[:100], resamples=10)
    for name in ALWAYS - {"bleu1", "bleu2", "bleu3", "bleu4"}:
        assert evaluation.metrics[name] == pytest.approx(evaluation.per_image[name].mean())


def test_clip_scores_become_a_metric_and_must_be_one_an_image():
    evaluation = evaluate_captions(["a", "b", "c"], REFERENCES, clip_scores=[0.5, 0.7, 0.9])
    assert evaluation.metrics["clipscore"] == pytest.approx(0.7)
    low, high = evaluation.intervals["clipscore"]
    assert 0.5 <= low < 0.7 < high <= 0.9
    with pytest.raises(ValueError, match="expected 3 CLIPScores"):
        evaluate_captions(["a", "b", "c"], REFERENCES, clip_scores=[0.5])


@pytest.mark.slow
def test_intervals_hold_the_metric_shrink_with_more_images_and_repeat(thousand_images):
    few = evaluate_captions(thousand_images.predictions[:100], thousand_images.references[:100], resamples=300)
    many = evaluate_captions(thousand_images.predictions, thousand_images.references, resamples=300)
    for name in ALWAYS:
        low, high = many.intervals[name]
        assert low < many.metrics[name] < high
        assert high - low < few.intervals[name][1] - few.intervals[name][0]
    again = evaluate_captions(thousand_images.predictions[:100], thousand_images.references[:100], resamples=300)
    assert again.intervals == few.intervals


def test_the_interval_of_a_mean_is_the_one_that_theory_gives():
    values = np.random.default_rng(0).normal(size=(400, 1))
    low, high = bootstrap_interval(values, lambda sums: sums / 400, resamples=4000)
    half = 1.96 * values.std() / 20
    assert low[0] == pytest.approx(values.mean() - half, abs=0.01)
    assert high[0] == pytest.approx(values.mean() + half, abs=0.01)


def test_mistaken_inputs_are_refused():
    with pytest.raises(ValueError, match="2 predictions, but references of 3 images"):
        caption_metrics(["a", "b"], REFERENCES)
    with pytest.raises(ValueError, match="image 1: expected a list of at least one reference"):
        caption_metrics(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="image 0: .*'a dog'"):
        caption_metrics(["a"], ["a dog"])


@pytest.mark.slow
def test_a_thousand_images_take_seconds():
    generator = random.Random(1)
    words = [f"word{number}" for number in range(300)]
    captions = [" ".join(generator.choices(words, k=12)) for _ in range(6000)]
    started = time.process_time()
    caption_metrics(captions[:1000], [captions[at : at + 5] for at in range(1000, 6000, 5)])
    assert time.process_time() - started < 8  # about 1 s


@given(st.lists(st.tuples(st.text(max_size=20), st.lists(st.text(max_size=20), min_size=1, max_size=3)), max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_text_gives_finite_numbers_in_range(rows):
    evaluation = evaluate_captions([row[0] for row in rows], [row[1] for row in rows], resamples=5)
    for name, value in evaluation.metrics.items():
        assert 0 <= value <= (10 if name == "cider" else 1) + 1e-9
        assert np.isfinite(evaluation.per_image[name]).all()
