from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run folder as training leaves it, with a stand-in model of one tensor."""
    folder = tmp_path / "outputs" / "run"
    (folder / "plots").mkdir(parents=True)
    (folder / "checkpoint-10").mkdir()
    save_file({"head.weight": np.arange(2000, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "mmhf_fusion"}')
    (folder / "processor_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "recipe.yaml").write_text("task: image-text-classification\n")
    (folder / "metrics.json").write_text(json.dumps({"test_accuracy": 0.8125}))
    (folder / "trainer_state.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "report.html").write_text("<html></html>")
    return folder


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return tmp_path / "releases" / "fakeddit"
