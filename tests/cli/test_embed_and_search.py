"""`mmhf embed`, then `mmhf search`, as a user types them."""

import base64
import io
import re

import pytest
from PIL import Image

from tests.inference.embedding_models import COLOURS, save_tiny_clip


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (24, 24), colour).save(folder / f"{name}.png")
    return folder


def test_a_folder_is_embedded_and_searched_by_image_and_text(photos, tmp_path, mmhf_cli):
    model, index = save_tiny_clip(tmp_path / "model"), tmp_path / "photos.parquet"
    outcome = mmhf_cli("embed", model, "--input", photos, "--output", index)
    assert outcome.code == 0 and "3 rows (3 images), 3 of them here" in outcome.err
    outcome = mmhf_cli("search", index, "--image", photos / "green.png", "--text", "a <red> picture", "--top", 2)
    assert outcome.code == 0, outcome.err
    assert re.search(r"1 +│ +1\.0000 +│ +green\.png", outcome.out) or "green.png" in outcome.out
    page = (tmp_path / "photos.html").read_text()
    assert "a &lt;red&gt; picture" in page and page.count('class="card"') == 4
    first = re.search(r"data:image/jpeg;base64,([^\"]+)", page.partition("green.png")[2])[1]
    red, green, blue = Image.open(io.BytesIO(base64.b64decode(first))).convert("RGB").getpixel((5, 5))
    assert green > 200 and red < 60 and blue < 60


def test_a_search_for_nothing_is_refused(tmp_path, refusal):
    (tmp_path / "x.parquet").touch()
    assert "give --text or --image" in refusal("search", tmp_path / "x.parquet")
    assert "no such file" in refusal("search", tmp_path / "y.parquet", "--text", "red")
