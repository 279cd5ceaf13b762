"""From mmhf.data.images of mmhf 0.1.0, made by `mmhf release`; with mmhf installed this file is not used."""

from __future__ import annotations

import io
import struct
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

# Raster formats only: some of Pillow's other decoders run external programs (EPS) or read further files.
_WANTED_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "MPO", "AVIF", "JPEG2000", "TGA", "ICO")


# What decoding damaged files was seen to raise in Pillow.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


MAX_PIXELS = 89_478_485


Image.init()


_FORMATS = [name for name in _WANTED_FORMATS if name in Image.OPEN]


ImageInput = Mapping[str, Any] | str | Path | bytes | Image.Image


class BadImageError(ValueError):
    """An image that cannot be used; the message is the reason."""


def decode_image(image: ImageInput, *, least_side: int | None = None) -> Image.Image:
    """Open an image as RGB.

    EXIF orientation is applied, transparency is put on white, grey, palette, CMYK and 16-bit images are converted, and
    of an animation the first frame is taken.

    Args:
        image (`dict`, `str`, `Path`, `bytes` or `PIL.Image.Image`):
            A row's image (`{"path": ..., "bytes": ...}`, where bytes win), a file, the content of a file, or an image.
        least_side (`int`, *optional*):
            A smaller picture will do, as long as its sides have this many pixels: a JPEG is then decoded at a half, a
            quarter or an eighth of its size, which is faster.

    Returns:
        `PIL.Image.Image`: mode RGB, fully loaded.

    Raises:
        BadImageError: the file is missing, empty, cut off, too large or no image.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    content = _read_bytes(image)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadImageError(f"too large: {opened.width} x {opened.height} pixels, more than {MAX_PIXELS:,}")
            if least_side is not None:
                opened.draft(None, (least_side, least_side))
            return _to_rgb(opened)
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's, far above that number of pixels
        raise BadImageError(f"too large: more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise BadImageError(f"not an image (starts with {content[:12]!r})") from error
    except _DECODE_ERRORS as error:
        raise BadImageError(_one_line(error)) from error


def _read_bytes(image: Mapping[str, Any] | str | Path | bytes) -> bytes:
    if isinstance(image, Mapping):
        content = image.get("bytes")
        source = image.get("path") if content is None else content
        if source is None:
            raise BadImageError("no image")
        return _read_bytes(source)
    content = image if isinstance(image, bytes) else _read_file(image)
    if not content:
        raise BadImageError("the image file is empty (0 bytes)")
    return content


def _read_file(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadImageError(_file_reason(error)) from error


def _file_reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "the image file is missing"
    return f"the image file cannot be read: {error.strerror}"


def _one_line(error: BaseException) -> str:
    return " ".join(f"the image is damaged: {error}".split())


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:  # broken metadata does not make the picture unusable
        return 1


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey (0..65535) and floating-point grey (0..1, or 0..255 when it goes above 1) to 0..255."""
    if image.mode == "F":
        _, brightest = cast("tuple[float, float]", image.getextrema())
        scale = 255.0 if brightest <= 1 else 1.0
        return image.point(lambda value: value * scale + 0).convert("L")
    return image.convert("I").point(lambda value: value * (1 / 257) + 0).convert("L")
