"""`mmhf evaluate --predictions`: captions that another program made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmhf.cli import main
from mmhf.data.images import decode_image
from mmhf.evaluation.captions import ClipScorer, caption_metrics

PREDICTIONS = {1: "a red square", 2: "a blue thing 🟦", 3: ""}
REFERENCES = {1: ["a red square", "the square is red"], 2: ["a blue square"], 3: ["a green square"]}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """COCO's result and annotation files, and the images, of which one is broken."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, color in ((1, "red"), (2, "blue")):
        Image.new("RGB", (300, 200), color).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no image")
    results = [{"image_id": number, "caption": text} for number, text in PREDICTIONS.items()]
    annotations = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in (1, 2, 3, 4)],
        "annotations": [
            {"image_id": number, "caption": text} for number, texts in REFERENCES.items() for text in texts
        ]
        + [{"image_id": 4, "caption": "nobody captioned this"}, {"image_id": 1, "caption": " "}],
    }
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (tmp_path / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    return {
        "--predictions": tmp_path / "results.json",
        "--references": tmp_path / "annotations.json",
        "--images": folder,
    }


def run(options: dict[str, Path], *more: object) -> int:
    pairs = [part for pair in options.items() for part in pair]
    return main([str(part) for part in ("evaluate", *pairs, *more)])


def test_numbers_report_and_gallery_of_coco_files(files, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(files, "--output", output) == 0
    expected = caption_metrics(list(PREDICTIONS.values()), list(REFERENCES.values()))
    assert json.loads((output / "metrics.json").read_text()) == pytest.approx(
        {f"captions_{name}": value for name, value in expected.items()}
    )
    printed = capsys.readouterr()
    assert f"{expected['cider']:.4f}" in printed.out and "3 rows" in printed.out
    assert "1 images have references but no prediction" in printed.err
    assert "1 empty references are left out" in printed.err
    report = (output / "report.html").read_text(encoding="utf-8")
    assert f"{expected['rougeL_coco']:.4f}" in report and "95 % intervals" in report
    gallery = (output / "captions.html").read_text(encoding="utf-8")
    assert gallery.count("data:image/jpeg;base64,") == 2
    assert "no readable image" in gallery and "a blue thing 🟦" in gallery and "the square is red" in gallery


def test_one_table_needs_no_second_file(tmp_path, capsys):
    lines = [
        {"generated": PREDICTIONS[number], "references": REFERENCES[number], "image": f"{number}.png"}
        for number in PREDICTIONS
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert run({"--predictions": tmp_path / "captions.jsonl"}) == 0
    assert "rougeL_coco" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to measure"),
        (["--references", "r.json"], "--references belongs to captions made elsewhere"),
        (["--clip", "some/clip"], "--clip belongs to captions made elsewhere"),
        (["outputs/run", "--predictions", "p.json"], "both a model (outputs/run) and --predictions"),
        (["--predictions", "p.json", "--split", "test"], "--split chooses a model's data"),
        (["--predictions", "absent.jsonl"], "absent.jsonl: no such file"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments, message, capsys):
    assert main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_clip_scores_the_images_and_a_broken_one_is_refused(files, tmp_path, capsys, monkeypatch):
    class RedScorer:
        """Stands in for a CLIP: how red the image is."""

        def score(self, images, captions):
            return np.array([decode_image(image).getpixel((0, 0))[0] / 255 for image in images])

    monkeypatch.setattr(ClipScorer, "from_pretrained", lambda name: RedScorer())
    assert run(files, "--clip", "some/clip") == 2
    assert "--clip: an image cannot be read: not an image" in capsys.readouterr().err
    Image.new("RGB", (10, 10), (51, 0, 0)).save(files["--images"] / "3.png")
    assert run(files, "--clip", "some/clip", "--output", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["captions_clipscore"] == pytest.approx(1.2 / 3)
    assert "some/clip" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_images_that_are_absent_or_outside_are_refused(files, tmp_path, capsys):
    assert run({**files, "--images": tmp_path / "nowhere"}) == 2
    assert "no such folder" in capsys.readouterr().err
    assert run({"--predictions": files["--predictions"], "--references": files["--references"]}, "--clip", "x/y") == 2
    assert "--clip needs the images" in capsys.readouterr().err
    outside = {"../1.png": "a red square"}
    (tmp_path / "outside.json").write_text(json.dumps(outside))
    assert run({**files, "--predictions": tmp_path / "outside.json", "--references": tmp_path / "outside.json"}) == 2
    assert "leaves the data folder: ../1.png" in capsys.readouterr().err
