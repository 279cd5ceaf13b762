"""Write a caption for an image: python run_onnx.py photo.jpg

Where the prompt names columns, their values follow as JSON: python run_onnx.py photo.jpg '{"question": "What is it?"}'
Needs the runtime (onnxruntime or openvino), numpy, pillow and tokenizers. The most probable token is taken
each time (num_beams=1).
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
from inputs import pixel_values, value_as_text
from runtime import Graph
from tokenizers import Tokenizer

FOLDER = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(FOLDER, "settings.json"), encoding="utf-8") as file:
    SETTINGS = json.load(file)
IMAGE, LANGUAGE = (Graph(FOLDER, name) for name in ("image", "language"))
TOKENIZER = Tokenizer.from_file(os.path.join(FOLDER, SETTINGS["text"]["tokenizer"]))


def prompt_ids(columns: dict[str, Any]) -> list[int]:
    """The tokens of a row's own prompt; none where all have the same, which is in the image's prefix."""
    prompt = SETTINGS.get("prompt", {"pieces": [], "missing": None, "max_length": 0})
    names = [name for _, name in prompt["pieces"] if name is not None]
    if unknown := columns.keys() - set(names):
        raise ValueError(f"{unknown.pop()}: the prompt names no such column; it has {', '.join(names) or 'none'}")
    text = ""
    for before, name in prompt["pieces"]:
        value = "" if name is None else value_as_text(columns.get(name)) or prompt["missing"]
        if value is None:
            raise ValueError(f"{name}: is missing, and the prompt needs it")
        text += before + value
    TOKENIZER.no_truncation()
    TOKENIZER.no_padding()
    return TOKENIZER.encode(text, add_special_tokens=False).ids[-prompt["max_length"] :] if text else []


def caption(path: str, columns: dict[str, Any] | None = None) -> str:
    """The caption. The first step reads the image's prefix and a row's own prompt, each further one the last token and
    what is cached."""
    (prefix,) = IMAGE.run({"pixel_values": pixel_values(path, SETTINGS["image"])})
    cached = {name: shape for name, shape in LANGUAGE.shapes.items() if name.startswith("past_")}
    past = [np.zeros((1, shape[1], 0, shape[3]), np.float32) for shape in cached.values()]
    written: list[int] = []
    token = np.array([prompt_ids(columns or {})], np.int64)
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
    print(caption(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else None))
