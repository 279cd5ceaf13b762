import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mmhf.data.bad_examples import BadExample
from mmhf.data.duplicates import DuplicateImage, DuplicatePair
from mmhf.evaluation.classification import evaluate_classification
from mmhf.evaluation.markup import GalleryCard, figure, format_value, gallery, table, thumbnail
from mmhf.evaluation.mistakes import MistakeExample
from mmhf.evaluation.plots import save_classification_plots
from mmhf.evaluation.report import (
    MAX_BAD_ROWS,
    MAX_DUPLICATES,
    ReportSection,
    classification_report_sections,
    write_report,
)

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
    example = MistakeExample(id=word, image=image, text=word, label=word, prediction=word, confidence=0.987)
    return classification_report_sections(
        evaluations,
        recipe_yaml=f"task: {word}",
        facts={word: word, "parameters": 1234567},
        stages=[{"stage": word, "epochs": 5.0}, {"stage": "all", "epochs": 10}],
        plots=save_classification_plots(folder, {"validation": evaluations["validation"]}),
        mistakes={"validation": [example] * 3},
        bad_examples=[BadExample("train", 12345, word, word)],
    )


def test_whatever_comes_from_data_is_text_and_not_markup(tmp_path):
    sections = make_sections(tmp_path, word=EVIL, names=(EVIL, "true", f"other {EVIL}"))
    write_report(tmp_path / "report.html", [*sections, ReportSection(EVIL, "<p>mine</p>")], EVIL, EVIL)
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.tags.count("img") == html.count("data:image/png;base64,")
    assert page.text.count(EVIL) >= 20


def test_a_report_needs_neither_network_nor_script(tmp_path):
    write_report(tmp_path / "report.html", make_sections(tmp_path), "title")
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) >= 2
    assert all(value.startswith("data:image/") for value in sources)
    assert not re.search(r"https?://|@import|url\(|<link|<script", html)
    assert [value for name, value in page.attributes if name == "content" and value.startswith("default-src 'none'")]


def test_the_contents_lead_to_every_section(tmp_path):
    sections = make_sections(tmp_path)
    write_report(tmp_path / "report.html", sections, "Run", "v0.1")
    page = Page((tmp_path / "report.html").read_text())
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
    sections = classification_report_sections({"test": evaluation}, recipe_yaml="task: t")
    write_report(tmp_path / "report.html", sections, "Run")
    text = Page((tmp_path / "report.html").read_text()).text
    assert "0.5000" in text
    assert "Share of rows whose most probable class is the label." in text
    assert "test: 1 rows have no label" in text
    assert "test: not defined: roc_auc, average_precision; every row has the label 'fake'" in text


def test_the_most_frequent_confusions_come_first():
    logits = np.eye(3)[[0, 1, 1, 1, 2, 2, 0]]
    evaluation = evaluate_classification(logits, [0, 0, 0, 1, 1, 2, 2], ["a", "b", "c"])
    sections = {part.title: part.html for part in classification_report_sections({"test": evaluation}, recipe_yaml="")}
    text = re.sub(r"\s*<[^>]+>\s*", "|", sections["Confusion matrix: test"])
    assert re.search(r"\|a\|+b\|+2\|+66\.7%\|+b\|+c\|+1\|+50\.0%\|+c\|+a\|+1\|+50\.0%", text)


def test_many_bad_rows_are_counted_and_cut(tmp_path):
    bad = [BadExample("train", row, str(row), "the image file is missing") for row in range(1, MAX_BAD_ROWS + 51)]
    html = classification_report_sections({"test": evaluate(["a", "b"])}, recipe_yaml="", bad_examples=bad)[-2].html
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
    sections = {
        part.title: part.html
        for part in classification_report_sections({"test": evaluate(["a", "b"])}, recipe_yaml="", duplicates=pairs)
    }
    assert list(sections)[-2:] == ["Duplicates", "Recipe"]
    text = re.sub(r"\s*<[^>]+>\s*", "|", sections["Duplicates"])
    assert re.search(r"\|the same file\|+1\|+1\|+0\|", text)
    assert re.search(r"\|nearly the same picture\|+50\|+0\|+2\|", text)
    assert text.count("|near|") == MAX_DUPLICATES - 1 and "and 1 more in duplicates.csv" in text
    assert "<script>" not in sections["Duplicates"] and "a48.png" in text and "a49.png" not in text


def test_a_split_without_labelled_rows_is_reported():
    nothing = evaluate_classification(np.zeros((1, 2)), [-100], ["a", "b"])
    sections = classification_report_sections({"test": nothing}, recipe_yaml="")
    assert [part.title for part in sections] == ["What was trained", "Metrics", "Bad rows", "Recipe"]
    assert "no row has a label" in sections[1].html


def test_galleries_hold_small_jpegs_so_that_reports_stay_small(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(3000, 1500, 3), dtype=np.uint8))
    sections = make_sections(tmp_path, image=noise)
    write_report(tmp_path / "report.html", sections, "Run")
    assert (tmp_path / "report.html").stat().st_size < 500_000
    assert noise.size == (1500, 3000)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_thumbnails_are_jpegs_of_at_most_160_pixels(mode):
    for size in ((640, 320), (1, 1)):
        uri = thumbnail(Image.new(mode, size))
        image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
        assert image.format == "JPEG"
        assert image.size == ((160, 80) if size[0] > 1 else (1, 1))


def test_cards_cut_long_texts_and_say_what_is_missing():
    html = gallery([GalleryCard(image=None, text="x" * 5000, facts={"label": "a"}, wrong="label")])
    assert "no readable image" in html
    assert "x" * 279 + "…" in html and "x" * 280 not in html
    assert "(no text)" in gallery([GalleryCard(image=None, text="", facts={})])


def test_figures_are_embedded_whole(tmp_path):
    Image.new("RGB", (3, 2), "blue").save(tmp_path / "plot.png")
    data = re.search(r'base64,([^"]+)"', figure(tmp_path / "plot.png", "a 'caption'")).group(1)
    assert base64.b64decode(data) == (tmp_path / "plot.png").read_bytes()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.123456, "0.1235"),
        (0.0, "0.0000"),
        (2e-5, "2e-05"),
        (1234567, "1,234,567"),
        (np.int64(1000), "1,000"),
        (np.float32(0.5), "0.5000"),
        (True, "yes"),
        ("a", "a"),
    ],
)
def test_values_are_written_for_a_reader(value, text):
    assert format_value(value) == text


def test_columns_of_numbers_are_set_to_the_right():
    html = table(["name", "score", "words"], [["a", 0.5, "b"], ["c", None, "d"]])
    assert html.count('<td class="number">') == 2
    assert "<td>b</td>" in html


def test_a_file_name_that_is_not_utf8_does_not_break_the_report(tmp_path):
    write_report(tmp_path / "report.html", [ReportSection("caf\udce9", "<p></p>")], "Übersicht 你好")
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "caf\\udce9" in text
    assert "Übersicht 你好" in text
