"""Images as tensors: decoded by the fastest decoder at hand, and brought to a model's size as its processor would.

From the file to the batch a picture is a uint8 tensor (3, H, W) whose values lie as they were decoded, pixel by pixel;
what costs time on this road is not decoding but copying pictures from one layout to another.
"""

from __future__ import annotations

import copy
import functools
import io
import os
from types import ModuleType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin
from transformers.image_processing_backends import TorchvisionBackend

from mmhf.data.images import MAX_PIXELS, ImageInput, decode_image, orientation, read_image
from mmhf.errors import InputError

JPEG_SWITCH = "MMHF_JPEG"
NORMALISING_SWITCH = "MMHF_DEVICE_NORMALISING"

_APP1, _START_OF_SCAN = 0xE1, 0xDA
_OWN_STEPS = ("process_image", "resize", "center_crop", "rescale_and_normalize", "_preprocess")
"""Methods of `TorchvisionBackend` that decide what becomes of an image (transformers 5.24)."""


def decode_pixels(image: ImageInput, *, least_side: int | None = None) -> Tensor:
    """Decode an image as uint8 RGB (3, H, W), as `decode_image` does.

    JPEG files of grey or YCbCr that nothing turns are decoded by simplejpeg where it is installed, to the same values;
    all others, and those that it finds fault with, by Pillow.

    Args:
        image (`dict`, `str`, `Path`, `bytes` or `PIL.Image.Image`): As `decode_image` takes it.
        least_side (`int`, *optional*): As there: a JPEG whose sides stay that long is decoded at a half, a quarter or
            an eighth of its size.

    Raises:
        BadImageError: the file is missing, empty, cut off, too large or no image.
    """
    if isinstance(image, Image.Image):
        return pixels_of(decode_image(image))
    content = read_image(image)
    decoded = _decode_jpeg(content, least_side)
    return pixels_of(decode_image(content, least_side=least_side)) if decoded is None else _as_pixels(decoded)


def pixels_of(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return _as_pixels(np.array(image))


def picture_of(pixels: Tensor) -> Image.Image:
    """Pixels as a PIL image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def describe_jpeg_decoder(least_side: int | None = None) -> str:
    """What `mmhf plan` says of it."""
    if least_side is not None:
        return (
            f"{describe_jpeg_decoder()}; large files at a half or less, but of {least_side} pixels (data.exact=false)"
        )
    if _simplejpeg() is not None:
        return f"simplejpeg, to the same values as Pillow and faster ({JPEG_SWITCH}=pillow turns it off)"
    if os.environ.get(JPEG_SWITCH) == "pillow":
        return f"Pillow ({JPEG_SWITCH}=pillow)"
    return "Pillow (simplejpeg is not installed: pip install 'mmhf[fast]')"


def why_normalised_ahead(device: torch.device) -> str | None:
    """Why images are normalised by who reads them; None where the device does it."""
    if device.type != "cuda":
        return f"it runs on {device.type}"
    return f"{NORMALISING_SWITCH}=off" if os.environ.get(NORMALISING_SWITCH) == "off" else None


class Normalisation(NamedTuple):
    """What a processor would do to uint8 pixels last: (pixels - mean) / std; both are (3, 1, 1) and fp32."""

    mean: Tensor
    std: Tensor

    def of(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) as fp32, to the last bit what the processor gives."""
        return torch.sub(pixels, self.mean).div_(self.std)


@runtime_checkable
class Shrinks(Protocol):
    """An image processor that scales each image to a size of its own."""

    def shrunk(self, pixels: Tensor) -> Tensor:
        """A picture (3, H, W) at that size, where it becomes smaller; else as it is."""
        ...


class PicturePreparer:
    """Prepares pictures for a processor, so that as little as possible is left for it to do.

    An image processor of transformers that works by torchvision, and whose size all images end at, gets pictures that
    its own methods have resized and cropped one by one. It then normalises them all at once. To the last bit that is
    what it would have made of the images. So it is with one that [`Shrinks`] them, which gets smaller ones. Any other
    processor gets PIL images.

    Args:
        processor (`Callable`): Called with `images`.

    Attributes:
        processor (`Callable`): What to call with the prepared pictures.
    """

    def __init__(self, processor: Any) -> None:
        images: Any = processor.image_processor if isinstance(processor, ProcessorMixin) else processor
        self.processor = processor
        self._sizer: Any = None
        self._shrinker = images if isinstance(images, Shrinks) and not vars(processor).get("images_kwargs") else None
        if not _ends_at_one_size(images) or vars(processor).get("images_kwargs"):
            return
        self._sizer = images
        batched = copy.copy(images)
        # Left to itself, it normalises images on the CPU one by one.
        batched.disable_grouping = False
        self._batched: Any = batched
        if images is processor:
            self.processor = batched
        else:
            self.processor = copy.copy(processor)
            self.processor.image_processor = batched

    def __call__(self, pixels: Tensor) -> Tensor | Image.Image:
        """A picture (3, H, W) as the processor is to get it."""
        sizer = self._sizer
        if sizer is None:
            smaller = pixels if self._shrinker is None else self._shrinker.shrunk(pixels)
            return picture_of(pixels) if smaller is pixels else smaller
        sized: Tensor = sizer.resize(pixels, sizer.size, resample=sizer.resample)
        return sizer.center_crop(sized, sizer.crop_size) if sizer.do_center_crop else sized

    def leave_normalising(self) -> Normalisation | None:
        """Have the processor give uint8 pixels from now on, a quarter of the bytes of what it gives otherwise.

        Returns:
            [`Normalisation`]: what is left to be done to them; None where it goes on as before.
        """
        sizer = self._sizer
        if sizer is None or not (sizer.do_rescale and sizer.do_normalize):
            return None
        self._batched.do_rescale = self._batched.do_normalize = False
        # As transformers joins the two steps into one.
        mean, std = (torch.tensor(each) * (1.0 / sizer.rescale_factor) for each in (sizer.image_mean, sizer.image_std))
        return Normalisation(mean.view(3, 1, 1), std.view(3, 1, 1))


def _ends_at_one_size(images: object) -> bool:
    if not isinstance(images, TorchvisionBackend):
        return False
    settings: Any = images  # each has all of them, but transformers declares none
    if not settings.do_resize or settings.do_pad:
        return False
    if any(getattr(type(images), name) is not getattr(TorchvisionBackend, name) for name in _OWN_STEPS):
        return False
    size, crop = dict(settings.size), dict(settings.crop_size or {})
    if size.keys() == {"height", "width"}:
        return not settings.do_center_crop or crop == size
    side = size.get("shortest_edge")
    square = {"height": side, "width": side}
    return size.keys() == {"shortest_edge"} and bool(settings.do_center_crop) and crop == square


def _as_pixels(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def _decode_jpeg(content: bytes, least_side: int | None) -> np.ndarray | None:
    """The pixels (H, W, 3) of a plain JPEG; None where Pillow has to look at it."""
    library = _simplejpeg()
    if library is None or not content.startswith(b"\xff\xd8\xff") or _is_turned(content):
        return None
    try:
        height, width, colours, _ = library.decode_jpeg_header(content)
        if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
            return None
        # Its other factors, such as 5/8, take longer than the whole picture.
        halvings = (each for each in (8, 4, 2) if least_side is not None and min(height, width) >= each * least_side)
        factor = next(halvings, 1)
        least = {"min_height": -(-height // factor), "min_width": -(-width // factor), "min_factor": factor}
        decoded: np.ndarray = library.decode_jpeg(content, colorspace="RGB", strict=True, **least)
        return decoded
    except ValueError:  # Pillow says what is wrong with it, or reads it all the same
        return None


def _is_turned(content: bytes) -> bool:
    """Whether a JPEG's metadata turn it; also where its segments cannot be told apart."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == _START_OF_SCAN:
            return False
        if marker == _APP1:  # Exif or XMP
            try:
                with Image.open(io.BytesIO(content), formats=["JPEG"]) as opened:
                    return orientation(opened) != 1
            except (OSError, SyntaxError, ValueError):
                return True
        at += 1 if marker == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return True


@functools.cache
def _simplejpeg() -> ModuleType | None:
    switch = os.environ.get(JPEG_SWITCH)
    if switch not in (None, "", "pillow"):
        raise InputError(f"{JPEG_SWITCH}={switch}: expected pillow, or nothing")
    if switch == "pillow":
        return None
    try:
        import simplejpeg
    except ImportError:
        return None
    module: ModuleType = simplejpeg
    return module
