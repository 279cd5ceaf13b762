"""`mmhf cache`, and what may go wrong with stored features: recomputed or refused, never wrong."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from programs import Program

from mmhf.features import store as feature_store
from tests.cli.test_feature_cache import FUSION, IMAGE, check_equal, facts, with_cache
from tests.cli.test_interruptions import fingerprint


class Tiny(NamedTuple):
    """A recipe of a tiny fusion classifier with a data folder and a store of its own."""

    write: Callable[..., Path]
    data: Path
    features: Path

    def segments(self, suffix: str) -> list[Path]:
        return sorted(self.features.glob(f"*/*.{suffix}"))


@pytest.fixture
def tiny(tiny_recipe: Callable[..., Path], fakeddit_dir: Path, tmp_path: Path) -> Tiny:
    data, features = shutil.copytree(fakeddit_dir, tmp_path / "data"), tmp_path / "features"

    def write(name: str, choice: Any = "on", **changes: Any) -> Path:
        training = {**FUSION["training"], "output_dir": str(tmp_path / name), "save_strategy": "no"}
        values = {"data": {"path": str(data), **changes}, "training": training, "stages": FUSION["stages"][:1]}
        section = choice if isinstance(choice, str) and choice == "off" else {"mode": choice, "folder": str(features)}
        return with_cache(tiny_recipe(values, name=name), section)

    return Tiny(write, data, features)


def computed(run: Path) -> dict[str, int]:
    return {name: int(text.split(" of ")[0].replace(",", "")) for name, text in facts(run).items()}


@pytest.mark.slow
def test_what_was_stored_ahead_is_only_read(tiny, succeed, caplog, tmp_path):
    caplog.set_level(logging.INFO, "mmhf")
    succeed("cache", tiny.write("ahead"))
    (counted,) = re.findall(r"(\d+) rows computed", caplog.text)
    assert int(counted) == 60 + 25, "each image once, and each title once that 60 rows have"
    assert "Stage head: vision (" in caplog.text
    caplog.clear()
    succeed("cache", tiny.write("ahead"))
    assert "0 rows computed" in caplog.text
    succeed("train", tiny.write("run"))
    assert set(computed(tmp_path / "run").values()) == {0}
    succeed("train", tiny.write("plain", "off"))
    check_equal(tmp_path / "run", tmp_path / "plain", tolerance=1e-4)


def test_cache_off_has_nothing_to_store(tiny, refusal):
    assert "cache is off" in refusal("cache", tiny.write("off", "off"))


@pytest.mark.slow
def test_damaged_and_cut_features_are_computed_anew(tiny, succeed, caplog, tmp_path):
    succeed("cache", tiny.write("ahead"))
    flipped, cut = tiny.segments("features")
    content = bytearray(flipped.read_bytes())
    for place in range(0, len(content), 1000):
        content[place] ^= 1
    flipped.write_bytes(bytes(content))
    cut.write_bytes(cut.read_bytes()[:-1])
    succeed("train", tiny.write("run"))
    assert "stored features are damaged" in caplog.text and "computed again" in caplog.text
    found = computed(tmp_path / "run")
    assert found["image features"] == 1 and found["text features"] >= len(content) // 1000 - 5
    succeed("train", tiny.write("plain", "off"))
    check_equal(tmp_path / "run", tmp_path / "plain", tolerance=1e-4)
    succeed("train", tiny.write("again"))
    assert set(computed(tmp_path / "again").values()) == {0}, "what was damaged has been replaced"


@pytest.mark.slow
def test_a_changed_image_under_the_same_name_and_a_broken_one(tiny, succeed, tmp_path):
    succeed("cache", tiny.write("ahead"))
    images = sorted((tiny.data / "public_image_set").glob("train*.jpg"))
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "JPEG")
    images[0].write_bytes(buffer.getvalue())
    # Ends as a JPEG does, so that it is found out only when it is decoded.
    images[1].write_bytes(b"\xff\xd8\xff\xe0" + bytes(100) + b"\xff\xd9")
    succeed("train", tiny.write("run"))
    found = computed(tmp_path / "run")
    assert found == {"image features": 1 + 1, "text features": 0}, "and the white image that stands for the broken one"
    assert (
        "the image is damaged" in (tmp_path / "run" / "bad_examples.csv").read_text()
        or "not an image" in (tmp_path / "run" / "bad_examples.csv").read_text()
    )
    succeed("train", tiny.write("plain", "off"))
    check_equal(tmp_path / "run", tmp_path / "plain", tolerance=1e-4)
    assert (tmp_path / "run" / "bad_examples.csv").read_text() == (tmp_path / "plain" / "bad_examples.csv").read_text()


@pytest.mark.slow
def test_a_full_disk_stops_storing_and_nothing_else(tiny, succeed, caplog, monkeypatch, tmp_path):
    def fail(path: Path, *_: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(feature_store, "_append", fail)
    succeed("train", tiny.write("run"))
    assert caplog.text.count("No space left on device") == 2, "once a part"
    succeed("train", tiny.write("plain", "off"))
    check_equal(tmp_path / "run", tmp_path / "plain", tolerance=1e-6)


@pytest.mark.slow
def test_storing_ahead_on_a_full_disk_is_refused(tiny, mmhf_cli, monkeypatch):
    def fail(path: Path, *_: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(feature_store, "_append", fail)
    outcome = mmhf_cli("cache", tiny.write("ahead"))
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith(f"error: {tiny.features}: features cannot be stored there")


@pytest.mark.slow
def test_a_folder_that_can_only_be_read_is_read(tiny, succeed, caplog, monkeypatch, tmp_path):
    succeed("cache", tiny.write("ahead"))
    before = {path: path.read_bytes() for path in tiny.features.glob("*/*")}
    title = tiny.data / "multimodal_train.tsv"
    title.write_text(title.read_text().replace("train0\t", "train0\tanother title of "))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(feature_store, "_append", refuse)
    succeed("train", tiny.write("run"))
    assert "so it is only read" in caplog.text
    assert computed(tmp_path / "run") == {"image features": 0, "text features": 1}, "kept in memory"
    assert {path: path.read_bytes() for path in tiny.features.glob("*/*")} == before


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.slow
def test_too_little_room_is_found_before_anything_is_computed(mode, tiny, mmhf_cli, monkeypatch, caplog):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    outcome = mmhf_cli("train", tiny.write("run", mode))
    if mode == "on":
        assert outcome.code == 2 and "bytes short of room for new features" in outcome.err.splitlines()[-1]
    else:
        assert outcome.code == 0 and "the run goes on without stored" in caplog.text
    assert not tiny.segments("features")


@pytest.mark.slow
def test_two_runs_build_the_same_store(tiny, succeed, tmp_path):
    recipe = tiny.write("ahead")
    runs = [Program("cache", recipe) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    succeed("train", tiny.write("run"))
    assert set(computed(tmp_path / "run").values()) == {0}
    succeed("train", tiny.write("plain", "off"))
    check_equal(tmp_path / "run", tmp_path / "plain", tolerance=1e-4)


@pytest.mark.slow
def test_the_plan_says_what_is_stored_and_why_not(tiny, succeed):
    def plan(*arguments: object) -> str:
        return " ".join(succeed("plan", *arguments).split())

    assert "cached: vision (48 × 256 float32, 0.0 MiB; its 3 passes" in plan(tiny.write("plan"))
    flipped = plan(tiny.write("plan", augment={"horizontal_flip": 0.5}))
    assert "cached: vision (80 × 256 float32" in flipped, "both views of 32 images, and 16 that are evaluated"
    augmented = plan(tiny.write("plan", augment={"horizontal_flip": 0.5, "rotation": 5}))
    assert "cached: vision in evaluation (16 × 256 float32" in augmented and "change at random" in augmented
    assert "cached: off memory" in plan(tiny.write("off", "off"))


def _image_classifier(tiny_recipe: Callable[..., Path], folder: Path, name: str, choice: Any, **changes: Any) -> Path:
    training = {
        **IMAGE["training"],
        "output_dir": str(folder / name),
        "save_strategy": "no",
        **changes.pop("training", {}),
    }
    return with_cache(tiny_recipe({**IMAGE, "training": training, **changes}, name=name), choice)


@pytest.mark.slow
def test_the_lower_part_of_an_encoder_and_workers(tiny_recipe, succeed, tmp_path):
    stages = [
        {"name": "head", "epochs": 2, "train": "head"},
        {"name": "top", "epochs": 3, "train": ["head", "vision:last 2"], "batch_norm": "frozen"},
    ]
    on = {"mode": "on", "folder": str(tmp_path / "features")}
    workers = {"dataloader_num_workers": 2}
    succeed("train", _image_classifier(tiny_recipe, tmp_path, "plain", "off", stages=stages))
    succeed("train", _image_classifier(tiny_recipe, tmp_path, "run", on, stages=stages, training=workers))
    check_equal(tmp_path / "run", tmp_path / "plain", tolerance=1e-4)
    assert set(facts(tmp_path / "run")) == {"image features", "image hidden"}
    assert len(list((tmp_path / "features").glob("vision-*"))) == 2


@pytest.mark.slow
def test_views_are_drawn_once(tiny_recipe, succeed, tmp_path):
    views = {"mode": "on", "folder": str(tmp_path / "features"), "views": 2}
    changes = {
        "data": {**IMAGE["data"], "augment": {"rotation": 30, "horizontal_flip": 0.5}},
        "stages": [{"name": "head", "epochs": 5, "train": "head"}],
    }
    succeed("train", _image_classifier(tiny_recipe, tmp_path, "run", views, **changes))
    found = computed(tmp_path / "run")["image features"]
    assert 24 + 48 < found <= 48 + 48, "two views of 24 images, of which five epochs meet most; and what is evaluated"
    succeed("train", _image_classifier(tiny_recipe, tmp_path, "again", views, **changes))
    assert computed(tmp_path / "again") == {"image features": 0}
    assert fingerprint(tmp_path / "again") == fingerprint(tmp_path / "run")


@pytest.mark.slow
def test_evaluate_reads_what_training_stored(tiny, succeed, caplog, tmp_path):
    caplog.set_level(logging.INFO, "mmhf")
    succeed("train", tiny.write("run"))
    caplog.clear()
    succeed("evaluate", tmp_path / "run", "--split", "test", "--output", tmp_path / "measured")
    assert re.findall(r"for each of (\d+) images: (\d+) there already", caplog.text) == [("12", "12")]
    one, other = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("run", "measured"))
    assert other == pytest.approx({name: one[name] for name in other})


@pytest.mark.slow
def test_a_boundary_within_an_epoch_with_workers(tiny_recipe, succeed, tmp_path):
    stages = [
        {"name": "head", "steps": 4, "train": "head"},
        {"name": "top", "steps": 4, "train": ["head", "vision:last 2"], "batch_norm": "frozen"},
        {"name": "all", "steps": 3, "train": "all", "batch_norm": "frozen"},
    ]
    on = {"mode": "on", "folder": str(tmp_path / "features")}
    workers = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    succeed("train", _image_classifier(tiny_recipe, tmp_path, "plain", "off", stages=stages))
    succeed("train", _image_classifier(tiny_recipe, tmp_path, "run", on, stages=stages, training=workers))
    check_equal(tmp_path / "run", tmp_path / "plain", tolerance=1e-4)
