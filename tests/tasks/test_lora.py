"""A recipe with low-rank changes from its first step to its release and `pipeline()`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mmhf
from mmhf.models.pypi_backbones import pypi_config, pypi_encoder
from mmhf.sample_data import read_sample

TINY = [
    *("data.image_size=32", "data.limit=96", "training.per_device_train_batch_size=24", "cache=off"),
    *("stages.0.epochs=1", "stages.1.epochs=1", "training.output_dir=run", "evaluation.baselines=off"),
    *("release.repo=releases", "training.load_best_model_at_end=false"),
]


@pytest.mark.slow
def test_the_quickstart_trains_releases_and_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = mmhf.train("quickstart/lora", TINY)
    trained, released = load_file("run/model.safetensors"), load_file("releases/v0.1/model.safetensors")
    changes = {name: tensor for name, tensor in trained.items() if "lora_B" in name}
    assert {name.split(".")[0] for name in changes} == {"vision", "text"}
    assert all(tensor.any() for tensor in changes.values())
    assert not any("lora" in name or "base_layer" in name for name in released)
    assert json.loads(Path("releases/v0.1/config.json").read_text())["lora"] is None

    backbone = pypi_encoder("all-minilm-l6-v2", pypi_config("all-minilm-l6-v2")).state_dict()
    own = {
        name.removeprefix("text.").replace(".base_layer.", "."): tensor
        for name, tensor in trained.items()
        if name.startswith("text.") and "lora" not in name
    }
    assert own and all(torch.equal(tensor, backbone[name]) for name, tensor in own.items())

    drawing = read_sample("test").slice(0, 1).to_pylist()[0]
    pair = {"image": Image.open(io.BytesIO(drawing["image"]["bytes"])).convert("RGB"), "text": "a red frog"}
    answers = [
        {each["label"]: each["score"] for each in mmhf.pipeline(model=str(where))(pair)}
        for where in (run.folder, "releases@v0.1")
    ]
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)
