from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_data import make_rows


@pytest.fixture
def recipe(text_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe of a tiny fusion classifier without data, as one writes it in Python."""
    monkeypatch.setattr("mmhf.evaluation.report.target_report.TargetReport.plots", lambda *args, **kwargs: {})
    return {
        "task": "image-text-classification",
        "model": {
            "vision": {"backbone": "timm/test_efficientnet", "pretrained": False},
            "text": {"backbone": str(text_encoder_dir), "pooling": "mean"},
            "embedding_dim": 16,
            "fusion": {"hidden_dims": [8]},
        },
        "data": {"image_size": 32, "max_length": 16, "columns": {"image": "photo", "text": "title", "label": "kind"}},
        "training": {"per_device_train_batch_size": 8, "max_steps": 2, "output_dir": str(tmp_path / "run")},
    }


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return make_rows(tmp_path)


@pytest.fixture
def with_images(rows: list[dict[str, Any]], tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """The rows with their images as paths, PIL images or bytes."""

    def change(kind: str) -> list[dict[str, Any]]:
        changed = copy.deepcopy(rows)
        for row in changed:
            path = tmp_path / "photos" / row["photo"]
            content = path.read_bytes()
            row["photo"] = {"path": str(path), "bytes": content, "pil": Image.open(io.BytesIO(content))}[kind]
        return changed

    return change
