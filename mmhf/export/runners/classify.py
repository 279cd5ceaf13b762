"""Label an image, or an image with a text, or tell its numbers: python run_onnx.py photo.jpg ["a text"]

Where the model reads columns of a table, they follow as JSON: python run_onnx.py photo.jpg "a text" '{"age": 61}'
Needs the runtime (onnxruntime or openvino), numpy and pillow, and for texts tokenizers.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
from inputs import column_values, pixel_values, tokens
from runtime import Graph

FOLDER = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(FOLDER, "settings.json"), encoding="utf-8") as file:
    SETTINGS = json.load(file)
GRAPH = Graph(FOLDER, "model")


def classify(path: str, text: str = "", columns: dict[str, Any] | None = None) -> dict[str, Any]:
    """The label, its probability, and the probability of each label; or several labels; or numbers."""
    if columns is not None and "columns" not in SETTINGS:
        raise ValueError("the model reads no columns")
    arrays = {"pixel_values": pixel_values(path, SETTINGS["image"]), "image_mask": np.ones(1, np.int64)}
    if "text" in SETTINGS:
        arrays.update(tokens([text.strip()], SETTINGS["text"], FOLDER))
        arrays["text_mask"] = np.array([bool(text.strip())], np.int64)
    if "columns" in SETTINGS:
        arrays["columns"] = column_values(columns or {}, SETTINGS["columns"])
        arrays["columns_mask"] = np.array([columns is not None], np.int64)
    (logits,) = GRAPH.run(arrays)
    scores, names, learnt = logits[0].astype(np.float64), SETTINGS["labels"], SETTINGS["learnt"]
    if learnt == "numbers":
        return {"numbers": dict(zip(names, scores.tolist(), strict=True))}
    if learnt == "labels":
        probabilities = 1 / (1 + np.exp(-scores))
        given = probabilities >= np.array(SETTINGS["thresholds"] or [0.5] * len(names))
        labels = [names[at] for at in np.argsort(-probabilities, kind="stable") if given[at]]
        return {"labels": labels, "probabilities": dict(zip(names, probabilities.tolist(), strict=True))}
    shares = np.exp(scores - scores.max())
    probabilities = shares / shares.sum()
    best = int(probabilities.argmax())
    if learnt == "ordered class":  # the median
        best = int((1 - probabilities.cumsum()[:-1] > 0.5).sum())
    answer = {"label": names[best], "confidence": float(probabilities[best])}
    if SETTINGS["abstain_below"] is not None:
        answer["abstained"] = answer["confidence"] < SETTINGS["abstain_below"]
    return {**answer, "probabilities": dict(zip(names, probabilities.tolist(), strict=True))}


if __name__ == "__main__":
    given = sys.argv[1:]
    values = json.loads(given[2]) if len(given) > 2 else None
    print(json.dumps(classify(given[0], given[1] if len(given) > 1 else "", values), ensure_ascii=False))
