from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from saved_families import TOWER, save_tiny_family
from tiny_processors import WORDS, square_images, word_tokenizer
from transformers import BertConfig, ViTConfig

from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification, FusionProcessor


@torch.no_grad()
def _spread_answers(model: FusionForImageTextClassification) -> None:
    """Centre and scale the head, so that each label is the answer to some inputs, and none is certain."""
    logits = model(torch.randn(64, 3, 16, 16), torch.randint(4, 14, (64, 5))).logits
    scale = 2 / logits.std(dim=0)
    model.head.weight *= scale[:, None]
    model.head.bias.copy_(-logits.mean(dim=0) * scale)


def save_tiny_model(folder: Path, label_names: list[str]) -> Path:
    """A random fusion classifier whose answers differ widely between inputs."""
    torch.manual_seed(0)
    config = FusionConfig(
        ViTConfig(image_size=16, patch_size=8, **TOWER),
        BertConfig(vocab_size=32, max_position_embeddings=32, **TOWER),
        text_pooling="mean",
        embedding_dim=16,
        hidden_dims=[16],
        initializer_range=0.3,
        id2label=dict(enumerate(label_names)),
        label2id={name: index for index, name in enumerate(label_names)},
    )
    model = FusionForImageTextClassification(config).eval()
    _spread_answers(model)
    processor = FusionProcessor(square_images(16), word_tokenizer(), max_length=12)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), ["fake", "true"])


@pytest.fixture(scope="session")
def three_way_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model3"), ["true", "satire", "fake"])


@pytest.fixture(scope="session")
def images_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images of different sizes and colours."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(20):
        pixels = generator.integers(0, 256, (10 + index, 30 - index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def rows(images_dir: Path) -> list[dict[str, str]]:
    generator = np.random.default_rng(1)
    return [
        {"id": f"{index:03d}", "image": f"{index}.png", "text": " ".join(generator.choice(WORDS, size=1 + index % 6))}
        for index in range(20)
    ]


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path: Path, rows: list[dict[str, str]]) -> Path:
    return write_csv(tmp_path / "input.csv", rows)


@pytest.fixture(scope="session")
def expected(model_dir: Path, images_dir: Path, rows: list[dict[str, str]]) -> np.ndarray:
    """(20, 2) probabilities by calling the model directly, one row at a time."""
    model = FusionForImageTextClassification.from_pretrained(model_dir).eval()
    processor = FusionProcessor.from_pretrained(model_dir)
    probabilities = []
    for row in rows:
        with Image.open(images_dir / row["image"]) as image, torch.no_grad():
            logits = model(**processor(images=[image.convert("RGB")], text=[row["text"]])).logits
        probabilities.append(logits.double().softmax(-1)[0].numpy())
    result = np.stack(probabilities)
    assert 0.05 < (result.argmax(-1) == 0).mean() < 0.95, "the tiny model must not always give the same answer"
    return result


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model of a family."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_family(family, tmp_path_factory.mktemp("tiny"))
        return made[family]

    return folder


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG of 60 x 40 pixels, coloured on the left and white on the right."""
    pixels = np.full((40, 60, 3), 255, dtype=np.uint8)
    pixels[:, :30] = np.random.default_rng(0).integers(0, 256, (40, 30, 3))
    path = tmp_path_factory.mktemp("picture") / "picture.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    return path
