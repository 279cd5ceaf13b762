"""Images and texts as an exported model reads them, by its settings.json, with Pillow, NumPy and tokenizers."""

from __future__ import annotations

import os
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
