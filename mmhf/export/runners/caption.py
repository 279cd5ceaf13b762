"""Write a caption for an image: python run_onnx.py photo.jpg

Needs onnxruntime, numpy, pillow and tokenizers. The most probable token is taken each time (num_beams=1).
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import onnxruntime
from inputs import pixel_values
from tokenizers import Tokenizer

FOLDER = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(FOLDER, "settings.json"), encoding="utf-8") as file:
    SETTINGS = json.load(file)
IMAGE, LANGUAGE = (
    onnxruntime.InferenceSession(os.path.join(FOLDER, name), providers=["CPUExecutionProvider"])
    for name in ("image.onnx", "language.onnx")
)
TOKENIZER = Tokenizer.from_file(os.path.join(FOLDER, SETTINGS["text"]["tokenizer"]))


def caption(path: str) -> str:
    """The caption. The first step reads the image's prefix, each further one the last token and what is cached."""
    (prefix,) = IMAGE.run(None, {"pixel_values": pixel_values(path, SETTINGS["image"])})
    cached = [each for each in LANGUAGE.get_inputs() if each.name.startswith("past_")]
    past = [np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in cached]
    written: list[int] = []
    token = np.zeros((1, 0), np.int64)
    while len(written) < SETTINGS["generation"]["max_new_tokens"]:
        feed = {each.name: value for each, value in zip(cached, past, strict=True)}
        logits, *past = LANGUAGE.run(None, {"prefix": prefix, "input_ids": token, **feed})
        best = int(logits[0].argmax())
        if best in SETTINGS["generation"]["end_ids"]:
            break
        written.append(best)
        prefix, token = prefix[:, :0], np.array([[best]])
    return TOKENIZER.decode(written, skip_special_tokens=True).strip()


if __name__ == "__main__":
    print(caption(sys.argv[1]))
