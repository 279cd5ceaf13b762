"""Which of a row's image, text and columns the model may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmhf.conventions import FusedModality
from mmhf.data.samplers import SampleKey, derive_seed

_SALT = 0x6D6F64
"""Sets the seeds here apart from those of the images' changes."""


@dataclass(frozen=True)
class ModalityMasking:
    """What hides images, texts and columns, or lets them be missing.

    Attributes:
        mask (`str`, *optional*): `image`, `text` or `columns`, which is hidden in every row.
        drop_image, drop_text, drop_columns (`float`): Share of the rows that lose it at random.
        missing_image (`bool`): A bad image is missing, and not white.
        missing_text (`bool`): An empty text is missing, and not the empty string.
    """

    mask: FusedModality | None = None
    drop_image: float = 0.0
    drop_text: float = 0.0
    drop_columns: float = 0.0
    missing_image: bool = False
    missing_text: bool = False

    def lacks_image(self, row: dict[str, Any]) -> bool:
        """Whether the row's image is hidden or missing, as far as it is known without decoding it."""
        return self.mask == "image" or (self.missing_image and names_no_image(row["image"]))

    def lacks_text(self, row: dict[str, Any]) -> bool:
        """Whether the row's text is hidden or missing."""
        return self.mask == "text" or (self.missing_text and not row["text"])

    def drop(self, seed: int, key: SampleKey) -> FusedModality | None:
        """Draw what a row that has several loses: one of them, or nothing."""
        if not (self.drop_image or self.drop_text or self.drop_columns):
            return None
        point = derive_seed(_SALT, seed, *key.numbers) / 2**63
        if point < self.drop_image:
            return "image"
        if point < self.drop_image + self.drop_text:
            return "text"
        return "columns" if point < self.drop_image + self.drop_text + self.drop_columns else None


def names_no_image(image: dict[str, Any] | None) -> bool:
    """Whether a row has neither path nor content of an image."""
    return image is None or (image["path"] is None and image["bytes"] is None)
