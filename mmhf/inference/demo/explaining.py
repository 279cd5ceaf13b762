"""What an answer depends on: hide parts of the image, leave out words, and see how far its score falls."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from captum.attr import Occlusion
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

ImageScore = Callable[[Tensor], Tensor]
"""From (B, 3, H, W) pixel values to the (B,) scores of one answer."""
TextScore = Callable[[list[str]], Tensor]
"""From B texts to the (B,) scores of one answer."""

_WINDOWS_PER_SIDE = 7
_PASSES_AT_ONCE = 16
_SHOWN_SIDE = 384
# What gradio.HighlightedText gives words that speak against and for, so that image and words look alike.
_COLOURS = LinearSegmentedColormap.from_list("relevance", ["#805ad5", "#ffffff", "#ef443c"])
_WORD = re.compile(r"\S+")


def image_relevance(score: ImageScore, pixel_values: Tensor) -> NDArray[np.float64]:
    """How far the score falls when a part of the image is hidden (Zeiler & Fergus 2014, section 4.2).

    A window of a seventh of each side slides over the image by half its width and shows the mean colour of the
    training data (0 after normalisation). It takes about 170 passes.

    Args:
        score (`Callable`): The score to explain.
        pixel_values (`Tensor`): (1, 3, H, W), normalised.

    Returns:
        `NDArray` of shape (H, W): For each pixel the mean over the windows that hid it; above 0 where the image speaks
        for the answer, below 0 where it speaks against it.
    """
    _, channels, height, width = pixel_values.shape
    window = (channels, max(1, height // _WINDOWS_PER_SIDE), max(1, width // _WINDOWS_PER_SIDE))
    strides = (channels, max(1, window[1] // 2), max(1, window[2] // 2))
    relevance: Tensor = Occlusion(score).attribute(
        pixel_values, sliding_window_shapes=window, strides=strides, perturbations_per_eval=_PASSES_AT_ONCE
    )
    return relevance[0].mean(dim=0).cpu().double().numpy()


@torch.no_grad()
def word_relevance(score: TextScore, text: str) -> list[tuple[str, float]]:
    """How far the score falls when a word is left out (Li et al. 2016, "representation erasure").

    Args:
        score (`Callable`): The score to explain.
        text (`str`): Words are what blanks separate.

    Returns:
        `list[tuple[str, float]]`: Each word, with the fall of the score; below 0 where the word speaks against it.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    if not spans:
        return []
    texts = [text, *(" ".join((text[:start] + text[end:]).split()) for start, end in spans)]
    batches = [texts[at : at + _PASSES_AT_ONCE] for at in range(0, len(texts), _PASSES_AT_ONCE)]
    scores = torch.cat([score(batch).cpu().double() for batch in batches])
    falls = (scores[0] - scores[1:]).tolist()
    return [(text[start:end], fall) for (start, end), fall in zip(spans, falls, strict=True)]


def scaled_words(words: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The same words, with their relevance divided by the largest there is, so that it lies in -1..1."""
    largest = max((abs(relevance) for _, relevance in words), default=0.0)
    return [(word, relevance / largest if largest else 0.0) for word, relevance in words]


def shown_image(pixel_values: Tensor, mean: list[float], std: list[float]) -> Image.Image:
    """What the model saw: (1, 3, H, W) normalised pixel values as a picture again."""
    pixels = pixel_values[0].detach().cpu().float().permute(1, 2, 0).numpy() * np.asarray(std) + np.asarray(mean)
    return Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8))


def heat_map(image: Image.Image, relevance: NDArray[np.float64]) -> Image.Image:
    """Lay relevance over a picture: red speaks for the answer, violet against it, the picture's own grey for neither.

    Args:
        image (`PIL.Image.Image`): Of W x H pixels.
        relevance (`NDArray` of shape (H, W)): From `image_relevance`.

    Returns:
        `PIL.Image.Image`: mode RGB, the longer side of 384 pixels.
    """
    scale = _SHOWN_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    largest = np.abs(relevance).max()
    strength = Image.fromarray((relevance / largest if largest else relevance).astype(np.float32))
    scaled = np.asarray(strength.resize(size, Image.Resampling.BILINEAR))
    grey = np.asarray(image.convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC)) / 255
    colours = _COLOURS((scaled + 1) / 2)[..., :3]
    opacity = 0.75 * np.abs(scaled)[..., None]
    return Image.fromarray(((grey * (1 - opacity) + colours * opacity) * 255).round().astype(np.uint8))
