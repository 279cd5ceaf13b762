"""Write a caption for an image: python run_onnx.py photo.jpg

Needs the runtime (onnxruntime or openvino), numpy, pillow and tokenizers. The most probable token is taken
each time (num_beams=1).
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
from inputs import pixel_values
from runtime import Graph
from tokenizers import Tokenizer

FOLDER = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(FOLDER, "settings.json"), encoding="utf-8") as file:
    SETTINGS = json.load(file)
IMAGE, LANGUAGE = (Graph(FOLDER, name) for name in ("image", "language"))
TOKENIZER = Tokenizer.from_file(os.path.join(FOLDER, SETTINGS["text"]["tokenizer"]))


def caption(path: str) -> str:
    """The caption. The first step reads the image's prefix, each further one the last token and what is cached."""
    (prefix,) = IMAGE.run({"pixel_values": pixel_values(path, SETTINGS["image"])})
    cached = {name: shape for name, shape in LANGUAGE.shapes.items() if name.startswith("past_")}
    past = [np.zeros((1, shape[1], 0, shape[3]), np.float32) for shape in cached.values()]
    written: list[int] = []
    token = np.zeros((1, 0), np.int64)
    while len(written) < SETTINGS["generation"]["max_new_tokens"]:
        feed = dict(zip(cached, past, strict=True))
        logits, *past = LANGUAGE.run({"prefix": prefix, "input_ids": token, **feed})
        best = int(logits[0].argmax())
        if best in SETTINGS["generation"]["end_ids"]:
            break
        written.append(best)
        prefix, token = prefix[:, :0], np.array([[best]])
    return TOKENIZER.decode(written, skip_special_tokens=True).strip()


if __name__ == "__main__":
    print(caption(sys.argv[1]))
