"""Train, evaluate, release, predict and serve: one set of numbers all the way; and releases that build on releases."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mmhf.hub import read_release
from mmhf.inference import pipeline


@pytest.fixture
def release_as(tmp_path):
    """Changes that make a tiny recipe release its model, in a run folder of its own."""

    def changes(version: str, **more) -> dict:
        release = {"repo": str(tmp_path / "releases"), "version": version}
        return {"release": release, "training": {"output_dir": str(tmp_path / f"run-{version}")}, **more}

    return changes


def read_rows(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter=delimiter))


@pytest.mark.slow
def test_every_verb_gives_the_same_numbers(tiny_recipe, release_as, succeed, fakeddit_dir, tmp_path):
    succeed("train", tiny_recipe(release_as("0.1")))
    release = tmp_path / "releases" / "v0.1"
    trained = json.loads((tmp_path / "run-0.1" / "metrics.json").read_text())

    succeed("evaluate", f"{tmp_path}/releases@0.1", "--output", tmp_path / "evaluation", "--batch-size", 5)
    evaluated = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert evaluated == pytest.approx(trained, abs=1e-6)
    assert trained.keys() == evaluated.keys() == json.loads((release / "metrics.json").read_text()).keys()

    table, images = fakeddit_dir / "multimodal_test_public.tsv", fakeddit_dir / "public_image_set"
    columns = ["--column", "image={id}.jpg", "--column", "text=clean_title", "--image-root", images]
    succeed("predict", release, "--input", table, "--output", tmp_path / "p.csv", *columns)
    rows, predicted = read_rows(table, "\t"), read_rows(tmp_path / "p.csv")
    assert [row["id"] for row in predicted] == [row["id"] for row in rows]
    correct = [
        row["label"] == ("fake", "true")[int(source["2_way_label"])]
        for row, source in zip(predicted, rows, strict=True)
    ]
    assert np.mean(correct) == pytest.approx(trained["test_accuracy"])

    served = pipeline("image-text-classification", model=str(release))(
        [{"image": str(images / f"{row['id']}.jpg"), "text": row["clean_title"]} for row in rows]
    )
    for row, answer in zip(predicted, served, strict=True):
        scores = {entry["label"]: entry["score"] for entry in answer}
        assert {name: float(row[f"probability_{name}"]) for name in scores} == pytest.approx(scores, abs=1e-6)


@pytest.mark.slow
def test_versions_build_on_each_other(tiny_recipe, release_as, succeed, refusal, tmp_path):
    succeed("train", tiny_recipe(release_as("1.6", model={"freeze_vision": True, "freeze_text": True})))
    repo = tmp_path / "releases"
    first = {path.name: path.read_bytes() for path in (repo / "v1.6").iterdir()}
    parent = f"{repo}@v1.6"
    succeed("train", tiny_recipe(release_as("1.7", init_from=parent)))
    succeed("train", tiny_recipe(release_as("1.8", init_from=f"{repo}@v1.7")))

    commit = read_release(repo / "v1.6").commit
    lineage = read_release(repo / "v1.7").parent
    assert (lineage.repo, lineage.revision, lineage.commit) == (str(repo), "v1.6", commit)
    grandchild = read_release(repo / "v1.8")
    assert (grandchild.parent.revision, grandchild.parent.commit) == ("v1.7", read_release(repo / "v1.7").commit)
    assert set(grandchild.extra["data_fingerprint"]) == {"train", "validation", "test"}
    assert grandchild.metrics == json.loads((tmp_path / "run-1.8" / "metrics.json").read_text())

    assert "version v1.6 exists" in refusal("train", tiny_recipe(release_as("1.6")), "training.output_dir=elsewhere")
    assert not Path("elsewhere").exists(), "refused only after something was written"
    assert "version v1.6 exists" in refusal("release", tmp_path / "run-1.7", "--repo", repo, "--version", "1.6")
    assert {path.name: path.read_bytes() for path in (repo / "v1.6").iterdir()} == first


@pytest.mark.slow
def test_child_starts_from_the_parents_head(tiny_recipe, release_as, succeed, tmp_path):
    succeed("train", tiny_recipe(release_as("1.6")))
    still = release_as("1.7", init_from=f"{tmp_path}/releases@v1.6")
    succeed(
        "train", tiny_recipe(still), "training.learning_rate=0.0", "training.max_steps=1", "model.freeze_vision=true"
    )
    parent, child = (
        json.loads((tmp_path / f"run-{version}" / "metrics.json").read_text()) for version in ("1.6", "1.7")
    )
    assert child == pytest.approx(parent, abs=1e-6)


@pytest.mark.slow
def test_other_labels_need_a_new_head(tiny_recipe, release_as, succeed, refusal, tmp_path):
    succeed("train", tiny_recipe(release_as("1.6")))
    recipe = tiny_recipe(
        release_as("2.0", init_from=f"{tmp_path}/releases@v1.6", data={"label": "3_way_label"}), name="three"
    )
    line = refusal("train", recipe)
    assert "fake, true" in line and "model.reset_head: true" in line
    assert not (tmp_path / "run-2.0").exists()

    succeed("train", recipe, "model.reset_head=true")
    config = json.loads((tmp_path / "releases" / "v2.0" / "config.json").read_text())
    assert config["id2label"] == {"0": "true", "1": "fake with true text", "2": "fake with false text"}


@pytest.mark.slow
def test_release_verb_keeps_a_finished_run(tiny_recipe, succeed, refusal, tmp_path):
    succeed("train", tiny_recipe())
    succeed("release", tmp_path / "run", "--repo", tmp_path / "releases", "--version", "0.2")
    assert read_release(tmp_path / "releases" / "v0.2").version == "v0.2"
    (tmp_path / "run" / "metrics.json").unlink()
    line = refusal("release", tmp_path / "run", "--repo", tmp_path / "releases", "--version", "0.3")
    assert "metrics.json is missing; restore it" in line
