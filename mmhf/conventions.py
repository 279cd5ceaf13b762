"""What all parts of mmhf agree on: how a row without label or image is marked, and what a sample consists of."""

from __future__ import annotations

from typing import Literal

IGNORED_LABEL = -100
"""A label that counts neither in a loss nor in a metric; torch's own `ignore_index`."""

IGNORED_IMAGE = -1
"""The image number of a caption without a usable image, in contrastive batches and retrieval."""

Modality = Literal["image", "text"]
"""What a sample has: an image, a text, or both."""
