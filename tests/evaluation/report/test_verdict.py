from pathlib import Path

import numpy as np
import pytest

from mmhf.data.duplicates import DuplicateImage, DuplicatePair
from mmhf.evaluation.calibration import evaluate_calibration
from mmhf.evaluation.captions import evaluate_captions
from mmhf.evaluation.classification import constant_answer, evaluate_classification
from mmhf.evaluation.modalities import evaluate_modalities
from mmhf.evaluation.report.classification import ClassificationReport
from mmhf.evaluation.report.sections import RunFacts, write_report
from mmhf.evaluation.report.target_report import Measured
from mmhf.evaluation.report.verdict import (
    caption_verdict,
    judged_split,
    retrieval_verdict,
)
from mmhf.evaluation.retrieval import evaluate_retrieval

NAMES = ["cat", "dog", "<b>"]


def run_facts(**facts):
    return RunFacts(folder=Path(), title="run", **facts)


def logits_for(labels, share_right, *, sure=4.0, seed=0):
    """Predictions that are right for a share of the rows."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(labels)) > share_right
    return sure * np.eye(3)[np.where(wrong, (labels + 1) % 3, labels)]


@pytest.fixture
def labels():
    return np.random.default_rng(0).choice(3, p=[0.6, 0.3, 0.1], size=600)


def classification_verdict(run, evaluation, *, majority=None, **measured):
    measured = Measured(evaluation, constants=constant_answer(evaluation, majority), **measured)
    return ClassificationReport().verdict(run, "test", measured)


def said(verdict):
    return " ".join([finding.text for finding in verdict.findings] + list(verdict.next_steps))


def test_a_classifier_stands_beside_the_best_constant_answer(labels):
    evaluation = evaluate_classification(logits_for(labels, 0.9), labels, NAMES)
    verdict = classification_verdict(run_facts(), evaluation)
    share = (labels == 0).mean()
    assert verdict.metric == "accuracy" and verdict.value == evaluation.metrics["accuracy"]
    assert verdict.result.low < verdict.value < verdict.result.high
    assert verdict.rivals == {"always “cat”": pytest.approx(share)}
    assert [bar.own for bar in verdict.bars] == [True, False]
    assert verdict.findings[0].kind == "good" and f"{share:.4f}" in verdict.findings[0].text


def test_the_constant_answer_scores_as_scikit_learn_says(labels):
    constant = evaluate_classification(np.eye(3)[np.zeros(len(labels), int)], labels, NAMES)
    verdict = classification_verdict(run_facts(best_metric="f1_macro"), constant)
    assert verdict.rivals["always “cat”"] == pytest.approx(constant.metrics["f1_macro"])
    assert verdict.findings[0].kind == "bad" and "No better than always “cat”" in verdict.findings[0].text
    assert "Rare classes are missed" in said(verdict) and "loss.class_weights" in said(verdict)


@pytest.mark.parametrize(("sure", "kind", "word"), [(2.78, "good", "can be trusted"), (20.0, "bad", "Overconfident")])
def test_calibration_is_judged(labels, sure, kind, word):
    logits = logits_for(labels, 0.9, sure=sure)
    evaluation, calibration = evaluate_classification(logits, labels, NAMES), evaluate_calibration(logits, labels, 3)
    verdict = classification_verdict(run_facts(), evaluation, calibration=calibration)
    assert [each.kind for each in verdict.findings if word in each.text] == [kind]
    assert ("evaluation.calibrate" in said(verdict)) == (kind == "bad")


@pytest.mark.parametrize(("image_alone", "kind"), [(0.4, "good"), (0.9, "bad")])
def test_a_shortcut_through_one_modality_is_named(labels, image_alone, kind):
    both = logits_for(labels, 0.9)
    views = {"both": both, "image_only": logits_for(labels, image_alone), "text_only": logits_for(labels, 0.3)}
    modalities = evaluate_modalities({**views, "mismatched": both}, labels, np.roll(np.arange(len(labels)), 1), NAMES)
    evaluation = evaluate_classification(both, labels, NAMES)
    verdict = classification_verdict(run_facts(), evaluation, modalities=modalities)
    finding = next(each for each in verdict.findings if "by the text alone" in each.text)
    assert finding.kind == kind
    assert ("the image alone does as well" in finding.text) == (kind == "bad")
    assert ("model.modalities.dropout: {image" in said(verdict)) == (kind == "bad")


def test_leaks_and_curves_say_what_to_try(labels):
    evaluation = evaluate_classification(logits_for(labels, 0.9), labels, NAMES)
    pair = DuplicatePair("exact", DuplicateImage("train", 1, "a"), DuplicateImage("test", 2, "b"), True, 0.0)
    rising = [{"step": step, "eval_accuracy": step / 10, "eval_loss": 1.0} for step in (1, 2, 3)]
    steps = classification_verdict(run_facts(duplicates=[pair], log_history=rising), evaluation).next_steps
    assert steps[0].startswith("data.on_duplicate") and steps[-1].startswith("Longer training")
    fell = [
        {"step": step, "eval_accuracy": accuracy, "eval_loss": loss}
        for step, accuracy, loss in ((1, 0.5, 1.0), (2, 0.9, 0.8), (3, 0.8, 1.2))
    ]
    *_, step = classification_verdict(run_facts(log_history=fell), evaluation).next_steps
    assert "has risen from 0.8000 to 1.2000" in step


def test_a_missed_class_that_is_as_large_as_the_others_is_not_called_rare():
    labels = np.arange(40) % 2
    evaluation = evaluate_classification(np.eye(2)[labels * 0], labels, NAMES[:2])
    verdict = classification_verdict(run_facts(), evaluation)
    assert "Classes are missed: F1 of 1 class is below" in said(verdict) and "loss.class_weights" not in said(verdict)


def test_a_split_without_labels_has_no_verdict():
    nothing = evaluate_classification(np.zeros((1, 3)), [-100], NAMES)
    assert classification_verdict(run_facts(), nothing) is None


def test_captions_stand_beside_what_needs_no_captioner():
    evaluation = evaluate_captions(["a dog", "a cat"], [["a dog runs"], ["the cat"]], resamples=50)
    constant = {**evaluation.metrics, "rougeL": 0.99}
    verdict = caption_verdict(run_facts(best_metric="loss"), "test", evaluation, {"nearest neighbour": constant})
    assert verdict.metric == "rougeL" and verdict.value == evaluation.metrics["rougeL"]
    assert verdict.bars[0].name == "nearest neighbour"
    assert "No better than nearest neighbour (0.9900)" in said(verdict) and "language model" in said(verdict)
    without = evaluate_captions(["a dog"], [["a dog runs"]], resamples=0)
    assert "interval" not in caption_verdict(run_facts(), "test", without, {}).precision


@pytest.mark.slow
def test_retrieval_stands_beside_chance():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, 8))
    owners = np.repeat(np.arange(200), 2)
    good = retrieval_verdict(run_facts(), "test", evaluate_retrieval(images, images[owners], owners))
    assert good.value > 0.9 and good.findings[0].kind == "good"
    draws = [
        evaluate_retrieval(rng.normal(size=(200, 8)), rng.normal(size=(400, 8)), owners).metrics["mean_recall"]
        for _ in range(40)
    ]
    chance = retrieval_verdict(run_facts(), "test", evaluate_retrieval(images, rng.normal(size=(400, 8)), owners))
    assert chance.rivals["chance"] == pytest.approx(np.mean(draws), abs=0.004)
    assert chance.result.low <= chance.value <= chance.result.high
    assert chance.findings[0].kind == "bad"


def test_test_is_judged_before_validation():
    assert judged_split({"validation": 1, "test": 2}) == ("test", 2)
    assert judged_split({"train": 0, "validation": 1}) == ("validation", 1)
    assert judged_split({"captions": 3}) == ("captions", 3)
    assert judged_split({}) is None


def test_the_report_opens_with_it_and_escapes_it(tmp_path, labels):
    evaluation = evaluate_classification(logits_for((labels + 2) % 3, 0.0), labels, NAMES[::-1])
    run = RunFacts(folder=tmp_path, title="run")
    verdict = classification_verdict(run, evaluation)
    write_report(run, [], verdict)
    page = (tmp_path / "report.html").read_text()
    assert page.index('class="verdict"') < page.index("<nav>")
    assert f"{verdict.value:.4f}" in page and "always “&lt;b&gt;”" in page and "<b>" not in page


def test_the_constant_answer_is_learnt_from_the_training_split(labels):
    evaluation = evaluate_classification(logits_for(labels, 0.9), labels, NAMES)
    verdict = classification_verdict(run_facts(), evaluation, majority="dog")
    assert verdict.rivals == {"always “dog”": pytest.approx((labels == 1).mean())}


def test_a_captioner_is_told_what_it_is_better_than():
    """Half of the way is not nothing: the constant caption is beaten, the neighbour's is not."""
    evaluation = evaluate_captions(["a dog", "a cat", ""], [["a dog runs"], ["a cat sits"], ["a cow"]], resamples=50)
    rivals = {"nearest neighbour": {"rougeL": 0.99}, "best constant caption": {"rougeL": -0.1}}
    verdict = caption_verdict(run_facts(best_metric="loss"), "test", evaluation, rivals)
    assert "Better than best constant caption (-0.1000), not yet as good as nearest neighbour (0.9900)" in said(
        verdict
    )
    assert "1 caption is empty." in said(verdict)
    trained = caption_verdict(run_facts(log_history=[{"step": 1, "loss": 1.0}]), "test", evaluation, rivals)
    assert "still ahead" in said(trained) and "has not paid" not in said(trained)


def test_a_classifier_that_frozen_features_beat_is_told_so_and_what_to_try(labels):
    evaluation = evaluate_classification(logits_for(labels, 0.7), labels, NAMES)
    ahead = {"logistic regression": {"accuracy": 0.93, "f1_macro": 0.9, "cpu_seconds": 1.24}}
    trained = run_facts(log_history=[{"step": 1, "loss": 1.0}])
    verdict = classification_verdict(trained, evaluation, baselines=ahead)
    assert [bar.name for bar in verdict.bars][0] == "logistic regression"
    assert "not yet as good as logistic regression (0.9300)" in verdict.findings[0].text
    assert verdict.findings[1].text == "CPU time without training a network: logistic regression 1.2 s."
    assert "A first stage that trains the head alone" in verdict.next_steps[0]
    behind = {"logistic regression": {**ahead["logistic regression"], "accuracy": 0.3}}
    verdict = classification_verdict(trained, evaluation, baselines=behind)
    assert "head alone" not in said(verdict) and verdict.findings[0].kind == "good"


@pytest.mark.parametrize(
    ("name", "step"),
    [("frozen projections", "start: linear_probe"), ("nearest neighbour", "model.neighbours with votes")],
)
def test_whichever_baseline_is_ahead_has_a_step_of_its_own(name, step):
    run = run_facts(log_history=[{"step": 1, "loss": 1.0}])
    if name == "nearest neighbour":
        captions = evaluate_captions(["a dog", "a cat"], [["a dog runs"], ["a cat sits"]], resamples=20)
        verdict = caption_verdict(run, "test", captions, {name: {"rougeL": 1.0}})
    else:
        rng = np.random.default_rng(0)
        retrieval = evaluate_retrieval(rng.normal(size=(40, 8)), rng.normal(size=(40, 8)), np.arange(40))
        verdict = retrieval_verdict(run, "test", retrieval, baselines={name: {"mean_recall": 0.99}})
    assert step in verdict.next_steps[0]
