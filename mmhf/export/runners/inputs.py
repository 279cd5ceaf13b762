"""Images, texts and columns as an exported model reads them, by settings.json, with Pillow, NumPy and tokenizers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps


def pixel_values(path: str, settings: dict[str, Any]) -> np.ndarray:
    """An image file as a batch of one: float32 (1, 3, height, width)."""
    image: Image.Image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    resize = settings["resize"]
    if "shortest_edge" in resize:
        edge, short = resize["shortest_edge"], min(image.size)
        width, height = (edge if side == short else int(edge * side / short) for side in image.size)
    else:
        width, height = resize["width"], resize["height"]
    image = image.resize((width, height), settings["interpolation"])
    if settings["crop"] is not None:
        width, height = settings["crop"]["width"], settings["crop"]["height"]
        left, top = int((image.width - width) / 2), int((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, np.float32) * np.float32(settings["scale"])
    pixels = (pixels - np.float32(settings["mean"])) / np.float32(settings["std"])
    return pixels.transpose(2, 0, 1)[None].copy()


def tokens(texts: list[str], settings: dict[str, Any], folder: str) -> dict[str, np.ndarray]:
    """Texts as token ids and mask, int64 (texts, length); the tokenizer's file cuts and pads them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.path.join(folder, settings["tokenizer"]))
    encoded = tokenizer.encode_batch([settings["prefix"] + text for text in texts])
    return {
        "input_ids": np.array([each.ids for each in encoded], np.int64),
        "attention_mask": np.array([each.attention_mask for each in encoded], np.int64),
    }


def column_values(row: Mapping[str, object], settings: dict[str, Any]) -> np.ndarray:
    """Values of a table's columns, float32 (1, width): scaled numbers, then a one in the place of each category."""
    names = [column["name"] for column in (*settings["numbers"], *settings["categories"])]
    if unknown := row.keys() - set(names):
        raise ValueError(f"{unknown.pop()}: the model reads no such column; it reads {', '.join(names)}")
    found: list[float] = []
    for column in settings["numbers"]:
        number = _number(column["name"], row.get(column["name"]))
        found.append(0.0 if number is None else (number - column["center"]) / column["scale"])
        found += [float(number is None)] * column["may_lack"]
    for column in settings["categories"]:
        text = value_as_text(row.get(column["name"]))
        found += [float(text == value) for value in column["values"]]
        found += [float(text is None)] * column["may_lack"]
    return np.array([found], np.float32)


def value_as_text(value: object) -> str | None:
    """A table's value as a text, None for a missing one; whole numbers have no point."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text.strip() or None


def _number(name: str, value: object) -> float | None:
    text = value_as_text(value)
    if text is None:
        return None
    try:
        number = float("" if isinstance(value, bool) or "_" in text else text)
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise ValueError(f"{name}: {text!r} is no number")
    return None if math.isnan(number) else number
