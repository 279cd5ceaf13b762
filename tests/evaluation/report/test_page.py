import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from mmhf.evaluation.report.page import (
    Card,
    Figure,
    Gallery,
    Section,
    Table,
    format_value,
    render_blocks,
    small_image,
    thumbnail,
)
from mmhf.evaluation.report.sections import RunFacts, write_report


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_thumbnails_are_jpegs_of_at_most_160_pixels(mode):
    for size in ((640, 320), (1, 1)):
        uri = thumbnail(Image.new(mode, size))
        image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
        assert image.format == "JPEG"
        assert image.size == ((160, 80) if size[0] > 1 else (1, 1))


def test_cards_cut_long_texts_and_say_what_is_missing():
    html = render_blocks([Gallery([Card(image=None, text="x" * 5000, facts={"label": "a"}, wrong="label")])])
    assert "no readable image" in html
    assert "x" * 279 + "…" in html and "x" * 280 not in html
    assert "(no text)" in render_blocks([Gallery([Card(image=None, text="", facts={})])])
    assert "(no text)" not in render_blocks([Gallery([Card(image=None, text=None, facts={})])])


def test_figures_are_embedded_whole(tmp_path):
    Image.new("RGB", (3, 2), "blue").save(tmp_path / "plot.png")
    data = re.search(r'base64,([^"]+)"', render_blocks([Figure(tmp_path / "plot.png", "a 'caption'")])).group(1)
    assert base64.b64decode(data) == (tmp_path / "plot.png").read_bytes()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.123456, "0.1235"),
        (0.0, "0.0000"),
        (2e-5, "< 0.0001"),
        (3e-4, "0.0003"),
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
    html = render_blocks([Table(["name", "score", "words"], [["a", 0.5, "b"], ["c", None, "d"]])])
    assert html.count('<td class="number">') == 2
    assert "<td>b</td>" in html


def test_a_file_name_that_is_not_utf8_does_not_break_the_report(tmp_path):
    write_report(RunFacts(folder=tmp_path, title="Übersicht 你好"), [Section("caf\udce9", [])])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "caf\\udce9" in text
    assert "Übersicht 你好" in text


def test_an_image_that_cannot_be_read_is_none_and_others_are_small():
    assert small_image(b"no image") is None
    assert small_image(Image.new("RGB", (1600, 400))).size == (160, 40)
