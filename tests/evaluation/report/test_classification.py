import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from mmhf.data.bad_examples import BadExample
from mmhf.data.duplicates import DuplicateImage, DuplicatePair
from mmhf.evaluation.classification import evaluate_classification, most_confident_mistakes
from mmhf.evaluation.report.classification import ClassificationReport, mistake_cards
from mmhf.evaluation.report.page import Card, Section, Text, render_blocks
from mmhf.evaluation.report.sections import MAX_BAD_ROWS, MAX_DUPLICATES, RunFacts, write_report
from mmhf.evaluation.report.target_report import Measured

EVIL = "<script>alert('x')</script><img src=x onerror=\"alert(1)\">&amp;"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """The tags, attributes and text of a page; fails when tags do not nest."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self._open = [], [], "", []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def evaluate(names, *, num_rows=80, **options):
    random = np.random.default_rng(0)
    labels = random.integers(len(names), size=num_rows)
    return evaluate_classification(random.normal(size=(num_rows, len(names))), labels, names, **options)


def make_sections(folder, *, word="word", names=("fake", "true"), image=None):
    evaluations = {"validation": evaluate(names, loss=0.5), f"test{word}": evaluate(names)}
    facts = {"predicted": word, "label": word, "confidence": "98.7%", "id": word}
    example = Card(image=image, text=word, facts=facts, wrong="predicted")
    run = RunFacts(
        folder=folder,
        title=word,
        recipe_yaml=f"task: {word}",
        trained={word: word, "parameters": 1234567},
        stages=[{"stage": word, "epochs": 5.0}, {"stage": "all", "epochs": 10}],
        bad_examples=[BadExample("train", 12345, word, word)],
    )
    measured = {split: Measured(each) for split, each in evaluations.items()}
    measured["validation"] = Measured(evaluations["validation"], [example] * 3)
    plots = ClassificationReport().plots(run, {"validation": measured["validation"]})
    return ClassificationReport().sections(run, measured, plots=plots)


def sections_of(evaluation, folder=Path(), **facts):
    run = RunFacts(folder=folder, title="Run", recipe_yaml="task: t", **facts)
    return ClassificationReport().sections(run, {"test": Measured(evaluation)})


def write(folder, sections, title="Run", subtitle=""):
    write_report(RunFacts(folder=folder, title=title, subtitle=subtitle), sections)
    return (folder / "report.html").read_text()


def test_whatever_comes_from_data_is_text_and_not_markup(tmp_path):
    sections = make_sections(tmp_path, word=EVIL, names=(EVIL, "true", f"other {EVIL}"))
    html = write(tmp_path, [*sections, Section(EVIL, [Text("mine")])], EVIL, EVIL)
    page = Page(html)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.tags.count("img") == html.count("data:image/png;base64,")
    assert page.text.count(EVIL) >= 20


def test_a_report_needs_neither_network_nor_script(tmp_path):
    html = write(tmp_path, make_sections(tmp_path))
    page = Page(html)
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) >= 2
    assert all(value.startswith("data:image/") for value in sources)
    assert not re.search(r"https?://|@import|url\(|<link|<script", html)
    assert [value for name, value in page.attributes if name == "content" and value.startswith("default-src 'none'")]


def test_the_contents_lead_to_every_section(tmp_path):
    sections = make_sections(tmp_path)
    page = Page(write(tmp_path, sections, "Run", "v0.1"))
    targets = [value.removeprefix("#") for name, value in page.attributes if name == "href"]
    assert targets == [value for name, value in page.attributes if name == "id"]
    assert len(targets) == len(sections)
    assert [section.title for section in sections] == [
        "What was trained",
        "Metrics",
        "Classes: validation",
        "Confusion matrix: validation",
        "Classes: testword",
        "Confusion matrix: testword",
        "Most confident mistakes: validation",
        "Bad rows",
        "Recipe",
    ]


def test_numbers_definitions_and_what_is_undefined_are_in_the_report(tmp_path):
    evaluation = evaluate_classification([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [0, 0, -100], ["fake", "true"])
    text = Page(write(tmp_path, sections_of(evaluation))).text
    assert "0.5000" in text
    assert "Share of rows whose most probable class is the label." in text
    assert "test: 1 rows have no label" in text
    assert "test: not defined: roc_auc, average_precision; every row has the label 'fake'" in text


def test_the_most_frequent_confusions_come_first():
    logits = np.eye(3)[[0, 1, 1, 1, 2, 2, 0]]
    evaluation = evaluate_classification(logits, [0, 0, 0, 1, 1, 2, 2], ["a", "b", "c"])
    sections = {part.title: render_blocks(part.blocks) for part in sections_of(evaluation)}
    text = re.sub(r"\s*<[^>]+>\s*", "|", sections["Confusion matrix: test"])
    assert re.search(r"\|a\|+b\|+2\|+66\.7%\|+b\|+c\|+1\|+50\.0%\|+c\|+a\|+1\|+50\.0%", text)


def test_many_bad_rows_are_counted_and_cut(tmp_path):
    bad = [BadExample("train", row, str(row), "the image file is missing") for row in range(1, MAX_BAD_ROWS + 51)]
    html = render_blocks(sections_of(evaluate(["a", "b"]), bad_examples=bad)[-2].blocks)
    assert html.count("the image file is missing") == MAX_BAD_ROWS
    assert "250 rows were skipped or blanked: 250 in train" in html
    assert "50 more in bad_examples.csv" in html


def test_duplicates_are_counted_by_what_makes_them_dangerous():
    def pair(kind, other_split, number, same_label=True):
        images = DuplicateImage("train", number, f"a{number}.png"), DuplicateImage(other_split, number, EVIL)
        return DuplicatePair(kind, *images, same_label, 0.0 if kind == "exact" else 2.5)

    pairs = [
        pair("exact", "test", 0),
        *(pair("near", "train", number, number > 1) for number in range(MAX_DUPLICATES)),
    ]
    sections = {part.title: render_blocks(part.blocks) for part in sections_of(evaluate(["a", "b"]), duplicates=pairs)}
    assert list(sections)[-2:] == ["Duplicates", "Recipe"]
    text = re.sub(r"\s*<[^>]+>\s*", "|", sections["Duplicates"])
    assert re.search(r"\|the same file\|+1\|+1\|+0\|", text)
    assert re.search(r"\|nearly the same picture\|+50\|+0\|+2\|", text)
    assert text.count("|near|") == MAX_DUPLICATES - 1 and "and 1 more in duplicates.csv" in text
    assert "<script>" not in sections["Duplicates"] and "a48.png" in text and "a49.png" not in text


def test_a_split_without_labelled_rows_is_reported():
    nothing = evaluate_classification(np.zeros((1, 2)), [-100], ["a", "b"])
    sections = sections_of(nothing)
    assert [part.title for part in sections] == ["What was trained", "Metrics", "Bad rows", "Recipe"]
    assert "no row has a label" in render_blocks(sections[1].blocks)


def test_galleries_hold_small_jpegs_so_that_reports_stay_small(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(3000, 1500, 3), dtype=np.uint8))
    sections = make_sections(tmp_path, image=noise)
    write(tmp_path, sections)
    assert (tmp_path / "report.html").stat().st_size < 500_000
    assert noise.size == (1500, 3000)


def encode(color):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, format="PNG")
    return {"path": None, "bytes": buffer.getvalue()}


def test_examples_carry_image_text_and_label_names():
    mistakes = most_confident_mistakes([[0.0, 3.0], [9.0, 0.0]], [0, 1], 2)
    rows = [
        {"id": "b", "image": encode("red"), "text": "second"},
        {"id": "a", "image": {"path": None, "bytes": b"no image"}, "text": "first"},
    ]
    surest, other = mistake_cards(mistakes, rows, ["fake", "true"])
    said = [surest.facts[name] for name in ("id", "label", "predicted")]
    assert (surest.text, said) == ("second", ["b", "true", "fake"])
    assert surest.image.getpixel((0, 0)) == (255, 0, 0)
    assert other.image is None
