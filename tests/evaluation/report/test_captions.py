from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from mmhf.evaluation.captions import evaluate_captions
from mmhf.evaluation.report.captions import (
    MeasuredCaptions,
    caption_sections,
    scores_of_image,
    spread_rows,
    write_caption_gallery,
)
from mmhf.evaluation.report.page import CaptionExample, Captions, render_blocks
from mmhf.evaluation.report.sections import RunFacts, write_report

PREDICTIONS = ["a dog", "<b>cat</b>", "", "ball"]
REFERENCES = [["a dog runs", "the dog"], ["a cat"], ["كلب"], ["a red ball"]]


@pytest.fixture(scope="module")
def evaluation():
    return evaluate_captions(PREDICTIONS, REFERENCES, resamples=20, loss=1.5)


@pytest.fixture(scope="module")
def examples(evaluation):
    return [
        CaptionExample(
            id=f"image {at}.jpg",
            image=None if at == 2 else Image.new("RGB", (400, 300), (at * 60, 0, 0)),
            generated=PREDICTIONS[at],
            references=REFERENCES[at],
            scores=scores_of_image(evaluation, at),
        )
        for at in range(4)
    ]


def shown_order(html: str, chosen: str) -> list[str]:
    """Ids as a browser shows them once a radio button is chosen: by the rule's `order`, then as in the page."""
    rows = re.findall(r'<div class="row" style="([^"]*)">.*?<dd class="id">(.*?)</dd>', html, re.S)
    rule = re.search(rf"#{chosen}:checked ~ \.captions \.row {{ order: (calc\(-1 \* )?var\((--rank-\d)\)", html)
    if rule is None:
        return [name for _, name in rows]
    sign = -1 if rule[1] else 1
    ranks = [sign * int(dict(part.split(":") for part in style.split(";"))[rule[2]]) for style, _ in rows]
    return [name for _, (_, name) in sorted(zip(ranks, rows, strict=True), key=lambda pair: pair[0])]


def test_rows_are_sorted_by_each_score_either_way(evaluation, examples):
    html = render_blocks([Captions(examples)])
    assert shown_order(html, "captions-data") == [each.id for each in examples]
    for at, name in enumerate(examples[0].scores):
        scores = evaluation.per_image[name]
        best = [float(scores[int(name.split()[1][0])]) for name in shown_order(html, f"captions-{at}-best")]
        assert best == sorted(scores, reverse=True)
        assert shown_order(html, f"captions-{at}-worst") == shown_order(html, f"captions-{at}-best")[::-1]


def test_each_choice_has_a_radio_button_and_a_rule(examples):
    html = render_blocks([Captions(examples, "test")])
    buttons = set(re.findall(r'<input type="radio" name="test" id="([^"]+)"', html))
    assert buttons == set(re.findall(r'<label for="([^"]+)"', html))
    assert buttons - {"test-data"} == set(re.findall(r"#(\S+):checked ~", html))
    assert html.count(" checked>") == 1


def test_the_page_is_self_contained_and_says_what_scores_are(tmp_path, examples):
    write_caption_gallery(tmp_path / "captions.html", examples, title="Captions", subtitle="a & b")
    page = (tmp_path / "captions.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 3
    assert "no readable image" in page and "(empty)" in page
    assert "&lt;b&gt;cat&lt;/b&gt;" in page and "<b>" not in page
    assert "كلب" in page and "a red ball" in page
    assert "<script" not in page and not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "ROUGE-L (longest common subsequence of words) by rouge-score" in page


def test_images_without_references_are_shown_without_scores(tmp_path):
    write_caption_gallery(tmp_path / "g.html", [CaptionExample(id="x", image=None, generated="a dog")])
    page = (tmp_path / "g.html").read_text(encoding="utf-8")
    assert "a dog" in page and 'type="radio"' not in page
    write_caption_gallery(tmp_path / "none.html", [])
    assert "There is no image." in (tmp_path / "none.html").read_text(encoding="utf-8")


def test_different_scores_in_one_gallery_are_refused(examples):
    with pytest.raises(ValueError, match="different scores"):
        Captions([examples[0], CaptionExample(id="x", image=None, generated="a")])


def test_spread_rows_go_from_the_best_to_the_worst():
    scores = np.random.default_rng(0).random(500)
    rows = spread_rows(scores, count=20)
    assert len(set(rows)) == 20
    assert (rows[0], rows[-1]) == (scores.argmax(), scores.argmin())
    assert list(scores[rows]) == sorted(scores[rows], reverse=True)
    assert sorted(spread_rows(scores[:7], count=20)) == list(range(7))
    assert spread_rows([]) == []


def test_report_has_numbers_intervals_baselines_captions_and_reasons(tmp_path, evaluation, examples):
    constant = evaluate_captions(["a dog"] * 4, REFERENCES, resamples=5).metrics
    run = RunFacts(
        folder=tmp_path,
        title="Captioner",
        recipe_yaml="task: image-captioning",
        trained={"decoding": "greedy"},
    )
    measured = {
        "validation": MeasuredCaptions(evaluation, examples=examples),
        "test": MeasuredCaptions(evaluation, {"best constant caption": constant}, examples[:2]),
    }
    sections = caption_sections(run, measured)
    assert [section.title for section in sections] == [
        "What was trained",
        "Metrics",
        "95 % intervals",
        "Beside baselines",
        "Captions: validation",
        "Captions: test",
        "Bad rows",
        "Recipe",
    ]
    write_report(run, sections)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    low, high = evaluation.intervals["rougeL"]
    assert f"{low:.4f} … {high:.4f}" in page
    assert f"{evaluation.metrics['cider']:.4f}" in page and f"{constant['rougeL']:.4f}" in page
    assert "not defined: clipscore; no CLIP was given" in page
    assert "2 of 4 images." in page
    ids = re.findall(r'id="(captions-[^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0
