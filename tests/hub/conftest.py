from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the folders of tests out of it

from loopback_hub import TOKEN, LoopbackHub


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run folder as training leaves it, with a stand-in model of one tensor."""
    return write_run(tmp_path / "outputs" / "run")


def write_run(folder: Path, *, seed: int = 0, metrics: dict[str, float] | None = None, recipe: str = "") -> Path:
    """The same at a place of one's own, with other weights, numbers and settings."""
    (folder / "plots").mkdir(parents=True)
    (folder / "checkpoint-10").mkdir()
    save_file({"head.weight": np.arange(2000, dtype=np.float32) + seed}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "mmhf_fusion"}')
    (folder / "processor_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "recipe.yaml").write_text(recipe or "task: image-text-classification\n")
    (folder / "metrics.json").write_text(json.dumps(metrics or {"test_accuracy": 0.8125}))
    (folder / "lineage.json").write_text('{"parent": null, "data_fingerprint": {"train": "ab"}}')
    (folder / "trainer_state.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "report.html").write_text("<html></html>")
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write run folders by name."""
    return lambda name, **changes: write_run(tmp_path / "outputs" / name, **changes)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return tmp_path / "releases" / "fakeddit"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub on this machine that the real client of this process talks to, logged in as a writer."""
    with LoopbackHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)  # behind the module's functions
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made at its first use, for good
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.utils.disable_progress_bars()
        yield server
        huggingface_hub.utils.enable_progress_bars()
        huggingface_hub.close_session()  # else a later server on the same port would be spoken to through this one


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries come at once; gives the seconds that would have been waited."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    return waits
