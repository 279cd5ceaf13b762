"""What all parts of mmhf agree on: how a row without label or image is marked, what a sample consists of, how a value
is written, how large an image is, what makes a model's inputs, and where looking at a value costs nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from transformers import BatchFeature

IGNORED_LABEL = -100
"""A label that counts neither in a loss nor in a metric; torch's own `ignore_index`."""

IGNORED_IMAGE = -1
"""The image number of a caption without a usable image, in contrastive batches and retrieval."""

Modality = Literal["image", "text"]
"""What a sample has: an image, a text, or both."""

Content = Literal["image", "text", "row"]
"""What stored features are made of: one of a sample's modalities, or the whole row, with its columns of the table."""

FusedModality = Literal["image", "text", "columns"]
"""What a fusion classifier puts together; columns are those of a table."""

ImageSize = int | tuple[int, int]
"""Of the images that a model sees, in pixels: the side of a square, or height and width."""

TEACHER_ANSWERS = "teacher_answers"
TEACHER_EMBEDS = ("teacher_image_embeds", "teacher_text_embeds")
"""What batches call what a teacher made of their samples: (B, C) answers, or (B, D) embeddings of image and text."""

HOST_DEVICES = {"cpu"}
"""Types of devices on which the program may look at a value without waiting for anything. Elsewhere a look at one
value makes the program wait for all that it has asked for so far."""


class Processor(Protocol):
    """Makes a model's inputs of images, texts or both: a processor or image processor, or something that wraps one."""

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature: ...


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Both sides of an image in pixels."""
    return (size, size) if isinstance(size, int) else size


def as_text(value: object) -> str | None:
    """Write a table's value as a string: whole floats as integers, booleans in lower case, missing values as None."""
    if isinstance(value, str):  # first, since nearly all values are
        return value.strip() or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() or None
