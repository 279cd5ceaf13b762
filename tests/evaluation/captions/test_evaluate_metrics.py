from __future__ import annotations

import evaluate
import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from mmhf.evaluation.captions import caption_metrics
from mmhf.evaluation.captions.evaluate_metrics import CAPTION_METRICS, CocoRouge, RougeScore, Scores

PREDICTIONS = ["grinning faces", "", "a dog 🐶 runs"]
REFERENCES = [["grinning face with big eyes", "smiley"], ["cat"], ["the dog runs"]]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))


def test_both_combine_and_equal_caption_metrics():
    both = evaluate.combine([RougeScore(), CocoRouge()])
    expected = caption_metrics(PREDICTIONS, REFERENCES)
    result = both.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == pytest.approx({name: expected[name] for name in ("rouge1", "rouge2", "rougeL", "rougeL_coco")})
    assert result["rougeL"] != pytest.approx(result["rougeL_coco"], abs=1e-3)


def test_what_is_evaluated_is_what_the_metrics_compute(monkeypatch):
    expected = caption_metrics(PREDICTIONS, REFERENCES)
    there = [metric for metric in CAPTION_METRICS if metric.missing() is None]
    combined = evaluate.combine([metric() for metric in there])
    assert combined.compute(predictions=PREDICTIONS, references=REFERENCES) == expected
    assert {name for metric in CAPTION_METRICS for name in metric.numbers} >= expected.keys()
    monkeypatch.setattr(CocoRouge, "scores", lambda pairs: Scores.means({"rougeL_coco": np.full(3, 7.0)}))
    assert caption_metrics(PREDICTIONS, REFERENCES)["rougeL_coco"] == 7.0


def test_forced_prefixes_name_the_definition():
    both = evaluate.combine([RougeScore(), CocoRouge()], force_prefix=True)
    assert set(both.compute(predictions=["a"], references=[["a"]])) == {
        "rouge_score_rouge1",
        "rouge_score_rouge2",
        "rouge_score_rougeL",
        "coco_rouge_rougeL_coco",
    }


def test_batches_add_up_to_the_whole():
    metric = CocoRouge()
    metric.add(prediction=PREDICTIONS[0], reference=REFERENCES[0])
    metric.add_batch(predictions=PREDICTIONS[1:], references=REFERENCES[1:])
    assert metric.compute() == CocoRouge().compute(predictions=PREDICTIONS, references=REFERENCES)


def test_a_single_reference_may_stand_without_a_list():
    plain = RougeScore().compute(predictions=["a dog"], references=["the dog"])
    assert plain == RougeScore().compute(predictions=["a dog"], references=[["the dog"]])


def test_the_stemmer_is_a_choice():
    expected = RougeScorer(["rouge1"], use_stemmer=True).score(REFERENCES[0][0], PREDICTIONS[0])["rouge1"].fmeasure
    arguments = {"predictions": PREDICTIONS[:1], "references": REFERENCES[:1]}
    assert RougeScore().compute(**arguments, use_stemmer=True)["rouge1"] == pytest.approx(expected)
    assert RougeScore().compute(**arguments)["rouge1"] < expected


def test_descriptions_carry_the_protocol():
    assert "no stemmer" in RougeScore().description
    assert "beta = 1.2" in CocoRouge().description
