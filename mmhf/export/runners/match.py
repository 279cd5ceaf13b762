"""How well texts fit an image: python run_onnx.py photo.jpg "a red frog" "a lamp" ...

Needs the runtime (onnxruntime or openvino), numpy, pillow and tokenizers.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
from inputs import pixel_values, tokens
from runtime import Graph

FOLDER = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(FOLDER, "settings.json"), encoding="utf-8") as file:
    SETTINGS = json.load(file)
IMAGE, TEXT = (Graph(FOLDER, name) for name in ("image", "text"))


def embed_image(path: str) -> np.ndarray:
    """(1, D), of length 1."""
    return np.asarray(IMAGE.run({"pixel_values": pixel_values(path, SETTINGS["image"])})[0])


def embed_texts(texts: list[str]) -> np.ndarray:
    """(texts, D), each of length 1."""
    return np.asarray(TEXT.run(tokens(texts, SETTINGS["text"], FOLDER))[0])


def match(path: str, texts: list[str]) -> dict[str, float]:
    """Probability of each text, as a zero-shot classifier has it."""
    logits = SETTINGS["logit_scale"] * (embed_image(path) @ embed_texts(texts).T)[0] + SETTINGS["logit_bias"]
    shares = np.exp(logits.astype(np.float64) - logits.max())
    return dict(zip(texts, (shares / shares.sum()).tolist(), strict=True))


if __name__ == "__main__":
    print(json.dumps(match(sys.argv[1], sys.argv[2:]), ensure_ascii=False))
