from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from mmhf.recipe.schema import DataSection

_SECTIONS: TypeAdapter[Any] = TypeAdapter(DataSection)


@pytest.fixture(scope="session")
def section() -> Callable[..., Any]:
    """A recipe's data section from its keys."""

    def make(**values: Any) -> Any:
        return _SECTIONS.validate_python(values)

    return make


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """The content of an image file."""

    def make(image: Image.Image | str = "red", kind: str = "JPEG", **options: Any) -> bytes:
        picture = Image.new("RGB", (24, 16), image) if isinstance(image, str) else image
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    return make


class StandInProcessor:
    """Mean colour as pixels, text length as tokens: enough to see what reached the processor."""

    def __call__(self, *, images: list[Image.Image], text: list[str]) -> dict[str, torch.Tensor]:
        def pixels(image: Image.Image) -> torch.Tensor:
            data = torch.frombuffer(bytearray(image.resize((4, 4)).tobytes()), dtype=torch.uint8)
            return data.reshape(4, 4, 3).permute(2, 0, 1).float()

        return {
            "pixel_values": torch.stack([pixels(image) for image in images]),
            "input_ids": torch.tensor([[len(value)] for value in text]),
            "attention_mask": torch.ones(len(text), 1, dtype=torch.int64),
        }


@pytest.fixture
def processor() -> StandInProcessor:
    return StandInProcessor()
