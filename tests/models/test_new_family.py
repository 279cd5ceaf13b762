"""A new family is one folder, one task module and one recipe section: nothing that was there before changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import mmhf

TOY = Path(__file__).parent / "toy_family"
# In one process, because each would import torch anew.
SCRIPT = """
import csv, json
import mmhf
from pathlib import Path
from mmhf.cli import main

assert Path(mmhf.__file__).is_relative_to(Path.cwd()), mmhf.__file__
assert mmhf.PrototypeModel.config_class is mmhf.PrototypeConfig
for line in (
    "plan recipe.yaml",
    "train recipe.yaml",
    "release run --repo releases/toy --version 1.0",
    "predict releases/toy/v1.0 --input images --output predicted.csv",
    "train recipe.yaml init_from=releases/toy@v1.0 training.output_dir=child",
):
    assert main(line.split()) == 0, line
rows = list(csv.DictReader(open("predicted.csv")))
classify = mmhf.pipeline("image-classification", model="releases/toy/v1.0")
assert type(classify.model) is mmhf.PrototypeModel
for row in rows:
    answer = classify(str(Path("images") / row["file_name"]), top_k=None)
    scores = {each["label"]: each["score"] for each in answer}
    for label in ("dark", "light"):
        assert abs(scores[label] - float(row["probability_" + label])) < 1e-5, row
from mmhf.inference.demo.subjects import load_subject
from PIL import Image
assert set(load_subject(Path("run"), captions=[]).answer(Image.new("RGB", (9, 9)), "").probabilities) == set(scores)
print(json.dumps({"rows": len(rows), "card": Path("releases/toy/v1.0/README.md").read_text()}))
"""


@pytest.mark.slow
def test_a_family_in_a_folder_is_trained_released_served_and_predicts(tmp_path: Path):
    shutil.copytree(Path(mmhf.__file__).parent, tmp_path / "mmhf", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TOY, tmp_path / "mmhf", dirs_exist_ok=True)
    generator = np.random.default_rng(0)
    for label, brightness in (("dark", 0), ("light", 128)):
        for index in range(8):
            path = tmp_path / "images" / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(brightness, brightness + 128, (32, 32, 3), dtype=np.uint8)).save(path)
    recipe = {
        "task": "prototype-classification",
        "model": {"vision": {"backbone": "timm/test_efficientnet", "pretrained": False}, "width": 4},
        "data": {
            "source": "image_folder",
            "path": "images",
            "image_size": 32,
            "split": {"validation": 0.25, "test": 0.25},
        },
        "training": {"output_dir": "run", "per_device_train_batch_size": 4, "report_to": "none"},
        "stages": [
            {"name": "head", "steps": 2, "train": ["head"], "learning_rate": 1e-2},
            {"name": "all", "steps": 2, "train": "all", "learning_rate": {"vision": 1e-3, "head": 1e-2}},
        ],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"rows": 16' in done.stdout
    assert "pipeline_tag: image-classification" in done.stdout
    assert (tmp_path / "releases/toy/v1.0/modeling_prototypes.py").is_file()
