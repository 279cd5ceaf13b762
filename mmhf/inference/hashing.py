"""Hashes that tell whether the input or the model of an interrupted job is still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_CHUNK_BYTES = 1 << 20
# What decides a prediction besides the input; reports and metrics of the folder do not.
_MODEL_FILES = ("*.safetensors", "*config.json", "*token*.json", "vocab.*", "merges.txt", "*.model")


def files_hash(paths: Iterable[Path]) -> str:
    """sha256 over the names and contents of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def model_hash(folder: Path) -> str:
    """sha256 over the weights, configuration and tokenizer of a model's folder."""
    return files_hash(sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)}))
