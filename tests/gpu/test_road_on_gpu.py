"""`mmhf train` on a CUDA device: two stages, stored features, evaluation, report; then the family's pipeline."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_families import NARROW

import mmhf

VISION = {"backbone": "timm/test_efficientnet", "pretrained": False}
RECIPES = {
    "image-classification": ({"vision": VISION}, {}, ["head"]),
    "image-text-classification": (
        {"vision": VISION, "text": {"backbone": None, "pooling": "mean"}, "embedding_dim": 16},
        {"max_length": 16},
        ["fusion", "head"],
    ),
    "contrastive": (
        {
            "vision": {"patch_size": 16, "width": 32, "layers": 2, "heads": 2, "pooling": "avg"},
            "text": {"width": 32, "layers": 2, "heads": 2, "vocab_size": 600},
            "embedding_dim": 16,
        },
        {"max_length": 32},
        ["projections"],
    ),
    "image-captioning": (
        {
            "vision": {**VISION, "features": "patches"},
            "language": {
                "backbone": "qwen3",
                "pretrained": False,
                "tokenizer": {"vocab_size": 600},
                "config": {**NARROW, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64},
            },
            "projector": {"hidden_dims": [32]},
        },
        {"max_length": 16},
        ["projector"],
    ),
}


@pytest.fixture(scope="module", params=RECIPES)
def task(request):
    return request.param


@pytest.fixture(scope="module")
def train(task, text_encoder_dir, tmp_path_factory):
    """Train the task's tiny recipe; gives the run folder and its losses by step."""
    folder = tmp_path_factory.mktemp("road")
    model, data, head = RECIPES[task]
    if task == "image-text-classification":
        model = {**model, "text": {**model["text"], "backbone": str(text_encoder_dir)}}

    def trained(name, *, cache, precision):
        values = {
            "task": task,
            "model": model,
            "data": {"source": "sample", "image_size": 64, "limit": 48, **data},
            "training": {
                "output_dir": str(folder / name),
                "per_device_train_batch_size": 16,
                "report_to": "none",
                "logging_steps": 1,
                "disable_tqdm": True,
                "weight_decay": 0.0,
                **precision,
            },
            "stages": [{"name": "head", "steps": 4, "train": head}, {"name": "all", "steps": 2, "train": "all"}],
            "evaluation": {"splits": ["test"]},
            "cache": {"mode": cache, "folder": str(folder / "features")},
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        mmhf.train(path)
        return folder / name

    return trained


def test_the_whole_road_with_stored_features(task, train, exact_floats):
    folders = [train(cache, cache=cache, precision={}) for cache in ("on", "off")]
    histories = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in folders]
    stored, computed = ([entry["loss"] for entry in history if "loss" in entry] for history in histories)
    assert stored == pytest.approx(computed, rel=1e-3)
    metrics = json.loads((folders[0] / "metrics.json").read_text())
    assert all(np.isfinite(value) for value in metrics.values() if isinstance(value, float))
    images = [Image.fromarray(np.full((64, 64, 3), 40 * number, dtype=np.uint8)) for number in (1, 5)]
    assert answers(task, folders[0], "cuda", images) == answers(task, folders[0], "cpu", images)


def test_the_whole_road_in_bf16(train):
    folder = train("bf16", cache="on", precision={"bf16": True})
    assert (folder / "report.html").is_file()


def answers(task, folder, device, images):
    """What the task's pipeline says, scores by label."""
    name = "zero-shot-image-classification" if task == "contrastive" else task
    pipe = mmhf.pipeline(name, model=str(folder), device=device)
    if task == "image-captioning":
        return pipe(images, max_new_tokens=5)
    if task == "contrastive":
        found = pipe(images, candidate_labels=["a cat", "a dog", "a car"])
    elif task == "image-text-classification":
        found = pipe(image=images, text=["a cat", "a dog"])
    else:
        found = pipe(images, top_k=100)
    return [pytest.approx({each["label"]: each["score"] for each in one}, abs=1e-4) if device == "cpu" else
            {each["label"]: each["score"] for each in one} for one in found]  # fmt: skip
