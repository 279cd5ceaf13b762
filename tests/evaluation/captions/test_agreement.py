"""Numbers against the implementations that papers use: rouge-score and pycocoevalcap, on 1,000 images."""

from __future__ import annotations

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from mmhf.evaluation.captions import CaptionEvaluation, coco_tokens, evaluate_captions

TOLERANCE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def evaluation(thousand_images) -> CaptionEvaluation:
    return evaluate_captions(thousand_images.predictions, thousand_images.references, resamples=20)


@pytest.fixture(scope="module")
def coco_inputs(thousand_images):
    """References and predictions as pycocoevalcap takes them, tokenised text by image."""
    references = {
        at: [" ".join(coco_tokens(text)) for text in of_image]
        for at, of_image in enumerate(thousand_images.references)
    }
    predictions = {at: [" ".join(coco_tokens(text))] for at, text in enumerate(thousand_images.predictions)}
    return references, predictions


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_rouge_score_s(evaluation, thousand_images, name):
    scorer = RougeScorer([name], use_stemmer=False)
    expected = [
        max(scorer.score(reference, prediction)[name].fmeasure for reference in of_image)
        for prediction, of_image in zip(thousand_images.predictions, thousand_images.references, strict=True)
    ]
    np.testing.assert_allclose(evaluation.per_image[name], expected, **TOLERANCE)
    assert evaluation.metrics[name] == pytest.approx(np.mean(expected), abs=1e-6)
    assert 0.1 < evaluation.metrics[name] < 0.9


@pytest.mark.parametrize(("name", "reference"), [("rougeL_coco", Rouge()), ("cider", Cider())])
def test_coco_rouge_and_cider_are_pycocoevalcap_s(evaluation, coco_inputs, name, reference):
    expected, expected_per_image = reference.compute_score(*coco_inputs)
    np.testing.assert_allclose(evaluation.per_image[name], expected_per_image, **TOLERANCE)
    assert evaluation.metrics[name] == pytest.approx(expected, abs=1e-6)
    assert expected > 0.1


def test_bleu_is_pycocoevalcap_s(evaluation, coco_inputs):
    expected, expected_per_image = Bleu().compute_score(*coco_inputs, verbose=0)
    for order in range(1, 5):
        assert evaluation.metrics[f"bleu{order}"] == pytest.approx(expected[order - 1], abs=1e-6)
        np.testing.assert_allclose(evaluation.per_image[f"bleu{order}"], expected_per_image[order - 1], **TOLERANCE)
    assert expected[3] > 0.01
