"""The same recipe trained from a local folder, from Google's and from Amazon's object store."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cloud_emulators import upload
from safetensors.numpy import load_file


@pytest.fixture
def run_from(
    mmhf_cli: Callable[..., Any], tiny_recipe: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[dict[str, Any], dict[str, float], str]]:
    """Train the tiny recipe on data at a place; returns weights, metrics and the list of bad rows."""

    def run(place: object, name: str, *overrides: str) -> tuple[dict[str, Any], dict[str, float], str]:
        folder = tmp_path / name
        outcome = mmhf_cli("train", tiny_recipe(), f"data.path={place}", f"training.output_dir={folder}", *overrides)
        assert outcome.code == 0, outcome.err
        metrics = json.loads((folder / "metrics.json").read_text())
        kept = {key: value for key, value in metrics.items() if "runtime" not in key and "per_second" not in key}
        return load_file(folder / "model.safetensors"), kept, (folder / "bad_examples.csv").read_text()

    return run


@pytest.mark.slow
def test_local_gs_and_s3_end_with_identical_weights(
    run_from: Callable[..., tuple[dict[str, Any], dict[str, float], str]],
    fakeddit_dir: Path,
    tmp_path: Path,
    cloud_folders: list[str],
) -> None:
    local = tmp_path / "fakeddit"
    shutil.copytree(fakeddit_dir, local)
    (local / "public_image_set" / "train3.jpg").unlink()
    (local / "public_image_set" / "train5.jpg").write_bytes(b"")
    options = ["data.augment.horizontal_flip=0.5", "training.max_steps=4"]
    weights, metrics, bad = run_from(local, "local", *options)
    assert [line.split(",")[:3] for line in bad.splitlines()[1:]] == [
        ["train", "4", "train3"],
        ["train", "6", "train5"],
    ]
    for url in cloud_folders:
        upload(local, url)
        cloud = [f"data.cloud.cache_dir={tmp_path / 'copies'}"]
        found, found_metrics, found_bad = run_from(url, url[:2], *options, *cloud)
        assert found.keys() == weights.keys()
        assert all((found[name] == value).all() for name, value in weights.items())
        assert (found_metrics, found_bad) == (metrics, bad)


@pytest.mark.slow
def test_what_a_worker_cannot_read_ends_the_run_in_one_line(
    mmhf_cli: Callable[..., Any], tiny_recipe: Callable[..., Path], fakeddit_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "fakeddit"
    shutil.copytree(fakeddit_dir, folder)
    for image in (folder / "public_image_set").glob("train*.jpg"):
        image.write_bytes(b"\xff\xd8\xff" + bytes(100) + b"\xff\xd9")  # begins and ends as a JPEG does
    overrides = [f"data.path={folder}", "data.on_bad_image=raise", "training.dataloader_num_workers=1"]
    outcome = mmhf_cli("train", tiny_recipe(), *overrides)
    assert outcome.code == 2
    errors = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert re.match(r"error: train row \d+ \(id train\d+\): not an image .*; set data.on_bad_image to skip", errors[0])
    assert "Traceback" not in outcome.err


@pytest.mark.slow
def test_a_bucket_that_cannot_be_read_is_refused_in_one_line(
    mmhf_cli: Callable[..., Any], tiny_recipe: Callable[..., Path], cloud_folders: list[str]
) -> None:
    for protocol in ("gs", "s3"):
        outcome = mmhf_cli("train", tiny_recipe(), f"data.path={protocol}://no-such-bucket/fakeddit")
        assert outcome.code == 2
        assert outcome.err == f"error: data.path: no such folder: {protocol}://no-such-bucket/fakeddit\n"
