"""The models of the predecessors in plain PyTorch, as their documents describe them, small where they can be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DistilBertConfig, DistilBertModel

from mmhf.models.tokenizers import train_text_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the folders of tests out of it

from seed_texts import WORDS


@pytest.fixture(scope="session")
def distilbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a DistilBERT of 2 layers, its weights and its tokenizer."""
    folder = tmp_path_factory.mktemp("text") / "distilbert"
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=400, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=64)
    DistilBertModel(config).save_pretrained(folder)
    train_text_tokenizer(WORDS, vocab_size=400, max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `mmhf convert`, which must work."""
    from mmhf.cli import main

    def run(*arguments: object) -> str:
        capsys.readouterr()
        code = main(["convert", *map(str, arguments)])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out + printed.err

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `mmhf convert`, which must end with one line on standard error; gives that line."""
    from mmhf.cli import main

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main(["convert", *map(str, arguments)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0].removeprefix("error: ")

    return run


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[[int], list[str]]:
    """Write some images into the test's folder; gives their names."""

    def write(count: int) -> list[str]:
        names = [f"{number}.png" for number in range(count)]
        for number, name in enumerate(names):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name)
        return names

    return write
