"""Reports as a reader sees them: on a phone and on a laptop, light and dark."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from looks import SCHEMES, WIDTHS, chromium, looked_at, problems
from PIL import Image
from playwright.sync_api import Browser

from mmhf.data.bad_examples import BadExample
from mmhf.data.duplicates import DuplicateImage, DuplicatePair
from mmhf.evaluation.calibration import evaluate_calibration
from mmhf.evaluation.captions import evaluate_captions
from mmhf.evaluation.classification import constant_answer, evaluate_classification
from mmhf.evaluation.multi_label import constant_answers, evaluate_multi_label
from mmhf.evaluation.report.captions import scores_of_image, write_caption_gallery
from mmhf.evaluation.report.classification import ClassificationReport
from mmhf.evaluation.report.multi_label import MultiLabelReport
from mmhf.evaluation.report.page import CaptionExample, Card
from mmhf.evaluation.report.sections import RunFacts
from mmhf.evaluation.report.target_report import Measured

pytestmark = pytest.mark.slow

NAMES = ["Scorpio horoscope", "person: red hair adult", "mismatched", "animals-and-nature"]
LONG_ID = "fluent-1f9d1-200d-1f9b0-mismatched-with-a-very-long-name-that-nobody-breaks"
HISTORY = [
    {"step": step, "stage": "head" if step < 60 else "top", "loss": 1 / step, "eval_loss": 1.2 / step,
     "eval_accuracy": 0.5 + step / 300, "lr/vision.stages.5": 1e-5, "lr/head": 1e-3}
    for step in range(10, 110, 10)
]  # fmt: skip
LINES_OF_WORD = """(element, word) => {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const at = walker.currentNode.textContent.indexOf(word), range = document.createRange();
    if (at < 0) continue;
    range.setStart(walker.currentNode, at);
    range.setEnd(walker.currentNode, at + word.length);
    return range.getClientRects().length;
  }
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's report with everything that one can hold."""
    folder = tmp_path_factory.mktemp("somewhere") / "outputs" / "fusion"
    random = np.random.default_rng(0)
    labels, logits = random.integers(len(NAMES), size=400), random.normal(size=(400, len(NAMES)))
    evaluation = evaluate_classification(logits, labels, NAMES, loss=1.4)
    calibration = evaluate_calibration(logits, labels, num_labels=len(NAMES))
    facts = {"predicted": "animals-and-nature", "label": "mismatched", "confidence": "98.7%", "id": LONG_ID}
    red = Image.new("RGB", (96, 96), "#c24")
    mistake = Card(image=red, text="a red frog on a lamp", facts=facts, wrong="predicted")
    first, second = DuplicateImage("train", 3, LONG_ID), DuplicateImage("test", 9, "9.jpg")
    run = RunFacts(
        folder=folder,
        title="fusion",
        subtitle="image-text-classification · run fusion",
        recipe_yaml="task: image-text-classification\ndata: {source: sample}\n",
        best_metric="accuracy",
        trained={"model": "FusionForImageTextClassification", "parameters": 26_281_474},
        stages=[
            {"stage": "top", "steps": 38, "ended early": "", "trains": "vision.stages.5 … final, text.layers.4, head",
             "learning rate": "0.0003 for fusion, head; 5e-05 for text.layers.4", "schedule": "cosine"},
        ],
        log_history=HISTORY,
        bad_examples=[BadExample("train", 12345, "3", f"{LONG_ID}.jpg: no such file")],
        duplicates=[DuplicatePair("near", first, second, True, 0.01)],
    )  # fmt: skip
    measured = Measured(evaluation, [mistake] * 6, constant_answer(evaluation), calibration=calibration)
    ClassificationReport().write(run, {"test": measured})
    return folder / "report.html"


def test_a_report_is_sound_at_each_width_and_in_each_scheme(browser: Browser, report: Path) -> None:
    assert problems(browser, report.as_uri()) == []


@pytest.fixture(scope="module")
def report_of_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a classifier of several labels a row."""
    folder = tmp_path_factory.mktemp("somewhere") / "outputs" / "several"
    random = np.random.default_rng(0)
    labels = (random.random((400, len(NAMES))) < 0.3).astype(np.int8)
    logits = random.normal(size=labels.shape) + 2 * labels - 1
    limits = [0.4, 0.5, 0.31, 0.62]
    evaluation = evaluate_multi_label(logits, labels, NAMES, thresholds=limits, temperature=1.2, loss=0.4)
    facts = {"wrong": "animals-and-nature wrongly given (98.7%)", "labels": f"mismatched, {NAMES[1]}", "id": LONG_ID}
    mistake = Card(image=Image.new("RGB", (96, 96), "#c24"), text="a red frog", facts=facts, wrong="wrong")
    history = [{**entry, "eval_map": entry["eval_accuracy"]} for entry in HISTORY]
    run = RunFacts(folder=folder, title="several", subtitle="image-classification", log_history=history)
    measured = Measured(evaluation, [mistake] * 6, constant_answers(evaluation))
    MultiLabelReport().write(run, {"validation": measured, "test": measured})
    return folder / "report.html"


def test_a_report_of_several_labels_a_row_is_sound(browser: Browser, report_of_sets: Path) -> None:
    assert problems(browser, report_of_sets.as_uri()) == []


def test_a_report_tells_no_path_of_this_machine(report: Path) -> None:
    assert str(report.parents[2]) not in report.read_text()


def test_words_are_not_broken_on_a_phone_and_narrow_figures_fit_it(browser: Browser, report: Path) -> None:
    """A table is scrolled where it is too wide; a number or name in it stands on one line."""
    with looked_at(browser, report.as_uri(), 390, "light") as (page, _):
        for selector, word in ((".scroll td", "vision.stages.5"), (".card dd", "mismatched"), ("td", "26,281,474")):
            found = page.locator(selector, has_text=word).first
            assert found.evaluate(LINES_OF_WORD, word) == 1, word
        widths = page.locator("figure:not(.wide) img").evaluate_all("all => all.map(each => each.width)")
        assert widths and max(widths) <= 390
        assert page.locator("figure.wide").count() == 2, "curves, and bars by class, are scrolled"


def test_a_gallery_of_captions_is_sound(browser: Browser, tmp_path: Path) -> None:
    texts, references = ["a dog", ""], [["a dog runs", "the dog"], ["a cat"]]
    evaluation = evaluate_captions(texts, references, resamples=20)
    examples = [
        CaptionExample(
            id=LONG_ID, image=Image.new("RGB", (400, 300), "#246"), generated=text, references=of_image,
            scores=scores_of_image(evaluation, at),
        )
        for at, (text, of_image) in enumerate(zip(texts, references, strict=True))
    ]  # fmt: skip
    write_caption_gallery(tmp_path / "captions.html", examples)
    assert problems(browser, (tmp_path / "captions.html").as_uri()) == []


def test_what_is_wrong_is_found(browser: Browser, tmp_path: Path) -> None:
    """So that the tests above can fail."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<p style='color:#bbb'>faint</p><div style='width:2000px'>wide</div><script>console.error('no')</script>"
    )
    found = problems(browser, page.as_uri())
    for (width, scheme), what in itertools.product(itertools.product(WIDTHS, SCHEMES), ("wide", "errors")):
        assert any(each.startswith(f"{width} px, {scheme}: {what}") for each in found), (width, scheme, what)
    assert any("faint: 1.9" in each for each in found)
