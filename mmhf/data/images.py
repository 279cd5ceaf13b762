"""Image files: paths kept inside the data folder, broken files found cheaply, any common kind decoded as RGB."""

from __future__ import annotations

import io
import os
import struct
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, NamedTuple, cast

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Raster formats only: some of Pillow's other decoders run external programs (EPS) or read further files.
_WANTED_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "MPO", "AVIF", "JPEG2000", "TGA", "ICO")
# What decoding damaged files was seen to raise in Pillow.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
_TAIL_BYTES = 32
_SHOWN = 80
"""Characters of a value that a message shows."""
MAX_PIXELS = 89_478_485
"""Larger images are refused as decompression bombs (Pillow's own warning level)."""
MAX_IMAGE_BYTES = 1 << 28
"""A larger file is not read as an image: no photograph has 256 MiB, but a decompression bomb may."""

Image.init()
_FORMATS = [name for name in _WANTED_FORMATS if name in Image.OPEN]

ImageInput = Mapping[str, Any] | str | Path | bytes | Image.Image


class ImageFault(NamedTuple):
    """Why an image cannot be used, and whether the image or the row that names it is at fault."""

    reason: str
    kind: Literal["image", "row"] = "image"


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
    content = read_image(image)
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


def find_size(content: bytes) -> tuple[int, int]:
    """Width and height of an encoded image, which is not decoded.

    Raises:
        BadImageError: it is no image.
    """
    if not content:
        raise BadImageError("the image file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            return opened.size
    except Image.DecompressionBombError as error:
        raise BadImageError(f"too large: more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except _DECODE_ERRORS as error:
        raise BadImageError(_one_line(error)) from error


def find_image_problem(image: str | Path | bytes) -> str | None:
    """Say what is wrong with an encoded image, cheaply when nothing is.

    A JPEG or PNG that begins and ends as one is taken to be sound; anything else is decoded to be sure.

    Args:
        image (`str`, `Path` or `bytes`):
            A file or its content.

    Returns:
        `str` or `None`: the reason, or nothing when the image can be used.
    """
    try:
        if isinstance(image, bytes):
            head, tail = image[:8], image[-_TAIL_BYTES:]
        else:
            head, tail = _read_ends(image)
        is_jpeg = head.startswith(b"\xff\xd8\xff") and tail.endswith(b"\xff\xd9")
        is_png = head == b"\x89PNG\r\n\x1a\n" and b"IEND" in tail
        if not (is_jpeg or is_png):
            decode_image(image)
    except BadImageError as error:
        return str(error)
    return None


def read_image(image: Mapping[str, Any] | str | Path | bytes) -> bytes:
    """The content of an image that is given in any of these ways.

    Raises:
        BadImageError: the file is missing or empty, or cannot be read.
    """
    if isinstance(image, Mapping):
        content = image.get("bytes")
        source = image.get("path") if content is None else content
        if source is None:
            raise BadImageError("no image")
        return read_image(source)
    content = image if isinstance(image, bytes) else _read_file(image)
    if not content:
        raise BadImageError("the image file is empty (0 bytes)")
    return content


def _read_file(path: str | Path) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise BadImageError(_file_reason(error)) from error


def _read_ends(path: str | Path) -> tuple[bytes, bytes]:
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            file.seek(max(0, size - _TAIL_BYTES))
            return head, file.read(_TAIL_BYTES)
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
    if orientation(image) != 1:
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


def orientation(image: Image.Image) -> int:
    """How an image's metadata say that it is to be turned; 1: not at all."""
    try:
        found: int = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found
    except _DECODE_ERRORS:  # broken metadata does not make the picture unusable
        return 1


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey (0..65535) and floating-point grey (0..1, or 0..255 when it goes above 1) to 0..255."""
    if image.mode == "F":
        _, brightest = cast("tuple[float, float]", image.getextrema())
        scale = 255.0 if brightest <= 1 else 1.0
        return image.point(lambda value: value * scale + 0).convert("L")
    return image.convert("I").point(lambda value: value * (1 / 257) + 0).convert("L")


def cut(text: str) -> str:
    """A text for a message, cut at 80 characters."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def shorten(value: object) -> str:
    """A value for a message: quoted, and cut at 80 characters."""
    return cut(repr(value))


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def find_name_escape(name: str) -> str | None:
    """Say why a path in a table may not be opened, whatever it is below.

    Args:
        name (`str`):
            The path as the table has it.

    Returns:
        `str` or `None`: the reason, or nothing when the path stays inside its folder, links aside.
    """
    if "\0" in name:
        return f"the image path has a NUL character: {shorten(name)}"
    if "://" in name:
        return f"the image is a URL, not a file: {cut(name)}"
    if os.path.isabs(name) or PureWindowsPath(name).anchor:
        return f"the image path is not relative to the data folder: {cut(name)}"
    if ".." in name.replace("\\", "/").split("/"):
        return f"the image path leaves the data folder: {cut(name)}"
    return None


class NamedImages(ABC):
    """Images that a table names by their paths, or holds."""

    def find_faults(self, images: Sequence[Mapping[str, Any] | None], *, read: bool) -> list[ImageFault | None]:
        """See `mmhf.data.table.Images`."""
        return [self.find_fault(image, read=read) for image in images]

    def find_fault(self, image: Mapping[str, Any] | None, *, read: bool) -> ImageFault | None:
        """What is wrong with one image; `read` looks into the file, too."""
        content = None if image is None else image["bytes"]
        if content is not None:
            reason = find_image_problem(content) if read else None
            return ImageFault(reason) if reason else None
        name = None if image is None else image["path"]
        return self.fault_of(name, read=read) if name else ImageFault("no image is named")

    @abstractmethod
    def fault_of(self, name: str, *, read: bool) -> ImageFault | None:
        """What is wrong with the image of this name."""

    def keep_findings(self) -> None:  # noqa: B027  # most have nothing to remember
        """See `mmhf.data.table.Images`."""


class DataFolder:
    """A folder that the paths in a table must not leave.

    The folder itself may be a symbolic link; what is below it may not lead out of it unless links are followed.

    Args:
        path (`str` or `Path`):
            The folder.
        follow_links (`bool`, defaults to `False`):
            Links may lead out of it: the Hub's own cache, DVC and git-annex are made of such links.
    """

    def __init__(self, path: str | Path, *, follow_links: bool = False) -> None:
        self.path = os.path.realpath(path)
        self.given = os.path.abspath(path)
        self.follow_links = follow_links

    def find_name(self, name: str) -> str:
        """The name of a file below the folder, as it is on disk.

        Args:
            name (`str`):
                As a table has it: relative, or an absolute path of the folder; with `/` or Windows' backslashes, its
                accents composed or not.

        Returns:
            `str`: the relative name of the file that is there, or the name as it was.
        """
        for root in (self.path, self.given):
            if name.startswith(root.rstrip(os.sep) + os.sep):
                name = os.path.relpath(name, root)
        if name.isascii() and "\\" not in name:
            return name
        slashed = name.replace("\\", "/")
        forms = [name, slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
        return next((form for form in forms if not find_name_escape(form) and self._has(form)), name)

    def _has(self, name: str) -> bool:
        try:
            return os.path.lexists(self.path_of(name))
        except ValueError:
            return False

    def path_of(self, name: str) -> str:
        """Return the full path of a relative one."""
        return os.path.join(self.path, name)

    def find_escape(self, name: str) -> str | None:
        """Say why a path in a table may not be opened.

        Args:
            name (`str`):
                The path as the table has it.

        Returns:
            `str` or `None`: the reason, or nothing when the path stays inside the folder.
        """
        return find_name_escape(name) or self.find_link_out(name)

    def find_link_out(self, name: str) -> str | None:
        """Say whether symbolic links lead a path out of the folder.

        Args:
            name (`str`):
                A path without `..`.

        Returns:
            `str` or `None`: the reason, or nothing when the path stays inside the folder.
        """
        if self.follow_links:
            return None
        full = self.path_of(name)
        parent, last = os.path.split(full)
        real = os.path.join(_real_folder(parent), last)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if real != self.path and not real.startswith(self.path.rstrip(os.sep) + os.sep):
            return f"the image path is a link out of the data folder: {cut(name)}; data.follow_links=true follows it"
        return None
