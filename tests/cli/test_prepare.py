"""`mmhf prepare`, and training on what it made."""

from __future__ import annotations

import shutil

import pytest

from tests.cli.test_interruptions import fingerprint


@pytest.mark.slow
def test_training_on_a_prepared_folder_is_the_same_training(tiny_recipe, succeed, refusal, fakeddit_dir, tmp_path):
    data = shutil.copytree(fakeddit_dir, tmp_path / "data")
    (data / "public_image_set" / "train3.jpg").write_bytes(b"no image")
    packed, runs = tmp_path / "packed", []
    recipe = tiny_recipe({"data": {"path": str(data), "augment": {"horizontal_flip": 0.5, "rotation": 10}}})
    succeed("prepare", recipe, "-o", packed)
    for number, more in enumerate(([], [f"data.prepared={packed}"])):
        run = tmp_path / f"run{number}"
        succeed("train", recipe, f"training.output_dir={run}", *more)
        runs.append(run)
    one, other = map(fingerprint, runs)
    assert one == other
    bad = [(run / "bad_examples.csv").read_text() for run in runs]
    assert bad[0] == bad[1] and "train3" in bad[0]
    shutil.rmtree(data)
    succeed("evaluate", runs[1])
    assert "data.prepared" in refusal("train", recipe, f"data.prepared={packed}", "data.limit=4")


def test_what_cannot_be_prepared(tiny_recipe, refusal, tmp_path):
    recipe = tmp_path / "tars.yaml"
    recipe.write_text("task: contrastive\ndata: {source: webdataset, train: '{0..9}.tar'}\ntraining: {max_steps: 2}\n")
    assert "streams are read in order already" in refusal("prepare", recipe, "-o", tmp_path / "packed")
    assert "name the folder to fill with -o" in refusal("prepare", tiny_recipe())
