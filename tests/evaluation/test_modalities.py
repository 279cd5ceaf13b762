from __future__ import annotations

import numpy as np
import pytest

from mmhf.evaluation.modalities import evaluate_modalities, other_rows


@pytest.mark.parametrize("size", [2, 3, 50])
def test_every_row_is_paired_with_another_one_once(size):
    partners = other_rows(size)
    assert sorted(partners) == list(range(size)) and not (partners == np.arange(size)).any()


def test_a_shortcut_through_the_text_is_seen():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    partners = other_rows(400)
    by_text = np.eye(2)[labels]
    views = {
        "both": by_text,
        "image_only": np.eye(2)[np.zeros(400, int)],
        "text_only": by_text,
        "mismatched": by_text[partners],
    }
    seen = evaluate_modalities(views, labels, partners, ["no", "yes"]).flat()
    assert seen["text_only_accuracy"] == 1.0 and seen["mismatched_text_accuracy"] == 1.0
    assert seen["image_only_accuracy"] == (labels == 0).mean()
    assert seen["mismatched_image_accuracy"] == (labels == labels[partners]).mean()
    assert seen["mismatched_changed"] == (labels != labels[partners]).mean()


def test_no_rows_with_both_is_no_number():
    nothing = np.zeros((0, 2))
    views = dict.fromkeys(("both", "image_only", "text_only", "mismatched"), nothing)
    evaluated = evaluate_modalities(views, np.zeros(0, int), np.zeros(0, int), ["a", "b"], num_left_out=3)
    assert evaluated.flat() == {} and evaluated.num_left_out == 3
