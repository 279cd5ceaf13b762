"""A run that reads tars while it trains: its epochs have a length, damage is listed, and it resumes to the bit."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from mmhf.sample_data import read_sample


def write_tar(path: Path, drawings: list[dict[str, Any]]) -> None:
    with tarfile.open(path, "w") as tar:
        for drawing in drawings:
            for ending, content in (("jpg", drawing["image"]["bytes"]), ("txt", drawing["caption"].encode())):
                info = tarfile.TarInfo(f"{drawing['hexcode']}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny captioner over four tars of 16 drawings, of which one is cut off in its second half."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    drawings = read_sample("train").slice(0, 64).to_pylist()
    for number in range(4):
        write_tar(tmp_path / f"t-{number}.tar", drawings[16 * number : 16 * number + 16])
    write_tar(tmp_path / "v.tar", read_sample("validation").slice(0, 12).to_pylist())
    damaged = (tmp_path / "t-2.tar").read_bytes()
    (tmp_path / "t-2.tar").write_bytes(damaged[: len(damaged) // 2])
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    sizes |= {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 32}
    values = {
        "task": "image-captioning",
        "model": {
            "vision": {"backbone": "timm/test_efficientnet", "pretrained": False, "features": "avg"},
            "language": {
                "backbone": "qwen3", "pretrained": False, "config": sizes, "tokenizer": {"vocab_size": 300},
            },
            "projector": {"kind": "mlp", "hidden_dims": [16]},
            "freeze_language": False,
        },
        "data": {
            "source": "webdataset",
            "train": str(tmp_path / "t-{0..3}.tar"),
            "validation": str(tmp_path / "v.tar"),
            "image_size": 32,
            "max_length": 16,
            "stream": {"shuffle_buffer": 12},
            "augment": {"horizontal_flip": 0.5},
        },
        "training": {
            "output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 8, "num_train_epochs": 2,
            "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 9,
            "eval_strategy": "no", "dataloader_num_workers": 1,
        },
        "evaluation": {"splits": ["validation"], "baselines": "off", "bootstrap": 10},
    }  # fmt: skip
    path = tmp_path / "stream.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_a_stream_trains_and_resumes(recipe: Path, succeed: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("train", recipe)
    with (run / "bad_examples.csv").open(encoding="utf-8") as file:
        [listed] = csv.DictReader(file)
    assert listed["id"] == "t-2.tar" and "is damaged or cannot be read" in listed["reason"]
    samples = 3 * 16 + int(listed["row"]) - 1
    steps = 2 * -(-samples // 8)
    state = json.loads((run / "trainer_state.json").read_text())
    assert (state["global_step"], state["epoch"]) == (steps, 2.0)
    weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    for name in ("model.safetensors", "metrics.json"):
        (run / name).unlink()
    for checkpoint in run.glob("checkpoint-*"):  # 9 lies in the middle of the second epoch
        if int(checkpoint.name.partition("-")[2]) > 9:
            shutil.rmtree(checkpoint)
    succeed("train", recipe, "--resume")
    assert hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest() == weights
