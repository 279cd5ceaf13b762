"""Take the pictures of the demo that the documentation shows: a right answer, and what it rests on.

    python tests/inference/demo/take_picture.py releases/quickstart/v0.1 docs/demo.png

The drawing is the one of the sample's test split whose own name the model is surest of (a classifier of pairs), or the
first of the page's examples. Ask it of a model that was trained whole: `make quickstart` makes one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # tests/

from looks import PATIENCE_MS, chromium

import mmhf
from mmhf.inference.demo.server import sample_captions, served_demo
from mmhf.inference.demo.subjects import load_subject
from mmhf.sample_data import read_sample

WIDTH, ASKED = 1100, 60


def surest_pair(model: Path, folder: Path) -> tuple[Path, str]:
    """A drawing and its own name that the model takes for a pair, the surest of the first ones."""
    pipe = mmhf.pipeline(model=str(model))
    best, chosen = -1.0, (Path(), "")
    for number, drawing in enumerate(read_sample("test").slice(0, ASKED).to_pylist()):
        path = folder / f"{number}.jpg"
        path.write_bytes(drawing["image"]["bytes"])
        answer = pipe(image=str(path), text=drawing["caption"], top_k=1)[0]
        if answer["label"] in ("matched", "true") and answer["score"] > best:
            best, chosen = answer["score"], (path, drawing["caption"])
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        served_demo(load_subject(options.model, captions=sample_captions()), name=str(options.model)) as url,
        chromium() as browser,
    ):
        page = browser.new_page(viewport={"width": WIDTH, "height": 720})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(url)
        page.wait_for_selector("#ask")
        if page.locator("#words").count():
            image, text = surest_pair(options.model, Path(name))
            page.set_input_files("#image input[type=file]", image)
            page.fill("#text textarea", text)
        else:
            page.locator("table tbody tr").first.click()
        page.wait_for_selector("#image img")
        page.click("#ask")
        page.wait_for_selector("#heat img, #caption textarea")
        page.wait_for_timeout(2000)
        page.screenshot(path=options.output, clip={"x": 0, "y": 0, "width": WIDTH, "height": 720})


if __name__ == "__main__":
    main()
