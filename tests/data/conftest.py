from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from mmhf.data.loading import LoadedData, load_data
from mmhf.recipe.data_sources import CaptionDataSection, DataSection

_SECTIONS: TypeAdapter[Any] = TypeAdapter(DataSection)
_CAPTION_SECTIONS: TypeAdapter[Any] = TypeAdapter(CaptionDataSection)


@pytest.fixture(scope="session")
def section() -> Callable[..., Any]:
    """A recipe's data section from its keys."""

    def make(**values: Any) -> Any:
        return _SECTIONS.validate_python(values)

    return make


@pytest.fixture(scope="session")
def caption_section() -> Callable[..., Any]:
    """A data section of images with captions from its keys; duplicates are not looked for."""

    def make(**values: Any) -> Any:
        return _CAPTION_SECTIONS.validate_python({"find_duplicates": "never", **values})

    return make


@pytest.fixture(scope="session")
def load_captions(caption_section: Callable[..., Any]) -> Callable[..., LoadedData]:
    """Load captioned data from the keys of its section."""

    def load(*, wanted: list[str] | None = None, check_images: bool = True, **values: Any) -> LoadedData:
        section = caption_section(**values)
        return load_data(section, task="image-captioning", splits=wanted, check_images=check_images)

    return load


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """The content of an image file."""

    def make(image: Image.Image | str = "red", kind: str = "JPEG", **options: Any) -> bytes:
        picture = Image.new("RGB", (24, 16), image) if isinstance(image, str) else image
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    return make


@pytest.fixture
def write_tar(tmp_path: Path) -> Callable[..., Path]:
    """Write a tar of members in this order."""

    def write(name: str, members: Mapping[str, bytes | str]) -> Path:
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, content in members.items():
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return tmp_path / name

    return write


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
