"""Pixels by every road are the pixels that Pillow and the processor would have made."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from transformers import CLIPImageProcessor, ViTImageProcessor
from transformers.image_processing_backends import TorchvisionBackend

from mmhf.data import pixels
from mmhf.data.augment import build_augmentation
from mmhf.data.collators import ImageCollator
from mmhf.data.images import BadImageError, decode_image
from mmhf.data.pixels import JPEG_SWITCH, PicturePreparer, decode_pixels, picture_of, pixels_of
from mmhf.errors import InputError
from mmhf.models.naflex import NaflexImageProcessor
from mmhf.recipe.augment_sections import AugmentSection

_TURNED = 6


def photo(width: int = 61, height: int = 47) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = _TURNED
    return exif


@pytest.fixture
def simplejpeg(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The fast decoder, which the test needs; counts what it decodes."""
    library = pytest.importorskip("simplejpeg")
    decode, calls = library.decode_jpeg, []

    def counted(*args, **kwargs):
        decoded = decode(*args, **kwargs)
        calls.append(1)
        return decoded

    monkeypatch.delenv(JPEG_SWITCH, raising=False)
    monkeypatch.setattr(library, "decode_jpeg", counted)
    pixels._simplejpeg.cache_clear()
    yield calls
    pixels._simplejpeg.cache_clear()


FILES = {
    "4:2:0": (lambda encode: encode(photo(), quality=90, subsampling=2), True),
    "4:2:2": (lambda encode: encode(photo(), quality=70, subsampling=1), True),
    "4:4:4": (lambda encode: encode(photo(), quality=95, subsampling=0), True),
    "progressive": (lambda encode: encode(photo(), progressive=True), True),
    "large": (lambda encode: encode(photo(500, 375)), True),
    "one pixel": (lambda encode: encode(photo(1, 1)), True),
    "grey": (lambda encode: encode(photo().convert("L")), True),
    "Exif that does not turn": (lambda encode: encode(photo(), exif=Image.Exif()), True),
    "turned by Exif": (lambda encode: encode(photo(), exif=turned()), False),
    "broken Exif": (lambda encode: encode(photo(), exif=b"Exif\0\0garbage"), True),
    "CMYK": (lambda encode: encode(photo().convert("CMYK")), False),
    "16-bit PNG": (lambda encode: encode(Image.fromarray(np.full((8, 8), 900, dtype=np.uint16)), "PNG"), False),
    "palette with alpha": (lambda encode: encode(photo().quantize(16), "PNG", transparency=3), False),
    "RGBA": (lambda encode: encode(photo().convert("RGBA"), "PNG"), False),
    "GIF": (lambda encode: encode(photo(), "GIF"), False),
    "WebP": (lambda encode: encode(photo(), "WEBP"), False),
}


@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_those_of_pillow(encode, simplejpeg, kind):
    make, is_fast = FILES[kind]
    content = make(encode)
    found = decode_pixels(content)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(decode_image(content)))
    assert bool(simplejpeg) == bool(is_fast)


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99, 0.9999])
def test_a_file_that_is_cut_off_is_refused_as_before(encode, simplejpeg, kept):
    content = encode(photo(300, 200))
    content = content[: int(len(content) * kept)]
    with pytest.raises(BadImageError) as by_pillow:
        decode_image(content)
    with pytest.raises(BadImageError) as found:
        decode_pixels(content)
    assert str(found.value) == str(by_pillow.value) and not simplejpeg


def test_every_way_to_give_an_image(tmp_path, encode):
    content = encode(photo())
    (tmp_path / "a.jpg").write_bytes(content)
    given = [content, tmp_path / "a.jpg", {"path": None, "bytes": content}, Image.open(io.BytesIO(content))]
    first, *others = [decode_pixels(image) for image in given]
    assert all(torch.equal(first, other) for other in others)
    with pytest.raises(BadImageError, match="missing"):
        decode_pixels(tmp_path / "absent.jpg")
    with pytest.raises(BadImageError, match="no image"):
        decode_pixels({"path": None, "bytes": None})


def test_bombs_are_refused(encode, simplejpeg, monkeypatch):
    monkeypatch.setattr(pixels, "MAX_PIXELS", 100)
    monkeypatch.setattr("mmhf.data.images.MAX_PIXELS", 100)
    with pytest.raises(BadImageError, match="too large"):
        decode_pixels(encode(photo()))
    assert not simplejpeg


def test_without_simplejpeg_pillow_decodes(encode, monkeypatch):
    monkeypatch.setenv(JPEG_SWITCH, "pillow")
    pixels._simplejpeg.cache_clear()
    try:
        assert torch.equal(decode_pixels(encode(photo())), pixels_of(decode_image(encode(photo()))))
        assert "MMHF_JPEG=pillow" in pixels.describe_jpeg_decoder()
        monkeypatch.setenv(JPEG_SWITCH, "other")
        pixels._simplejpeg.cache_clear()
        with pytest.raises(InputError, match="MMHF_JPEG=other: expected pillow"):
            decode_pixels(encode(photo()))
        monkeypatch.delenv(JPEG_SWITCH)
        monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
        pixels._simplejpeg.cache_clear()
        assert torch.equal(decode_pixels(encode(photo())), pixels_of(decode_image(encode(photo()))))
        assert "pip install 'mmhf[fast]'" in pixels.describe_jpeg_decoder()
    finally:
        pixels._simplejpeg.cache_clear()


SQUARE = {"height": 32, "width": 32}
PROCESSORS = {
    "squash": CLIPImageProcessor(size=SQUARE, crop_size=SQUARE, do_center_crop=False),
    "crop": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
    "bilinear": CLIPImageProcessor(size=SQUARE, do_center_crop=False, resample=2),
    "ViT": ViTImageProcessor(size=SQUARE),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_prepared_pictures_give_the_processors_own_tensors(kind):
    processor = PROCESSORS[kind]
    pictures = [photo(), photo(40, 90), photo(32, 32), photo(20, 11), Image.new("RGB", (32, 32), "white")]
    expected = processor(images=pictures, return_tensors="pt")["pixel_values"]
    prepare = PicturePreparer(processor)
    prepared = [prepare(pixels_of(picture)) for picture in pictures]
    assert {tuple(picture.shape) for picture in prepared} == {(3, 32, 32)}
    found = prepare.processor(images=prepared, return_tensors="pt")["pixel_values"]
    assert (found - expected).abs().max() * 255 * max(processor.image_std) <= 0.01
    assert vars(processor).get("disable_grouping") is None  # nothing of this is saved with it


@pytest.mark.parametrize("kind", PROCESSORS)
def test_what_is_left_to_the_device_gives_the_same_bits(kind):
    processor = PROCESSORS[kind]
    prepare = PicturePreparer(processor)
    pictures = [prepare(pixels_of(photo(width, 300))) for width in (280, 400)]
    whole = prepare.processor(images=pictures, return_tensors="pt")["pixel_values"]
    for _ in range(2):  # who asks again is told the same
        left = prepare.leave_normalising()
        assert left is not None
        sent = prepare.processor(images=pictures, return_tensors="pt")["pixel_values"]
        assert sent.dtype == torch.uint8
        assert torch.equal(left.of(sent), whole)
    assert processor.do_normalize and processor.do_rescale, "the processor itself is nobody else's to change"


@pytest.mark.parametrize("settings", [{"do_normalize": False}, {"do_rescale": False}, {"do_resize": False}])
def test_who_cannot_leave_it_goes_on_as_before(settings):
    processor = CLIPImageProcessor(**{"size": SQUARE, "crop_size": SQUARE, "do_center_crop": False, **settings})
    prepare = PicturePreparer(processor)
    assert prepare.leave_normalising() is None
    made = prepare.processor(images=[prepare(pixels_of(photo()))], return_tensors="pt")["pixel_values"]
    assert torch.equal(made, processor(images=[photo()], return_tensors="pt")["pixel_values"])


class OwnSteps(CLIPImageProcessor):
    """A processor that does more than the stock ones."""

    def rescale_and_normalize(self, images: Tensor, *args, **kwargs) -> Tensor:
        return TorchvisionBackend.rescale_and_normalize(self, images, *args, **kwargs) * 2


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE),
        CLIPImageProcessor(do_resize=False, crop_size=SQUARE),
        OwnSteps(size=SQUARE, do_center_crop=False),
    ],
)
def test_other_processors_get_pil_images(processor):
    prepare = PicturePreparer(processor)
    prepared = prepare(pixels_of(photo()))
    assert isinstance(prepared, Image.Image) and np.array_equal(np.asarray(prepared), np.asarray(photo()))
    assert prepare.processor is processor


def test_images_in_their_own_shape_are_shrunk_ahead_to_the_same_bits():
    processor = NaflexImageProcessor(patch_size=14, max_num_patches=9, resample=3)
    pictures = [
        photo(width, height) for width, height in ((400, 301), (90, 20), (30, 300), (20, 20), (1, 1), (1, 700))
    ]
    pictures.append(pictures[0].resize((3000, 3), Image.Resampling.BICUBIC))
    prepare = PicturePreparer(processor)
    prepared = [prepare(pixels_of(picture)) for picture in pictures]
    assert {isinstance(each, Tensor) for each in prepared} == {True, False}
    assert all(each[0].numel() <= 9 * 14**2 for each in prepared if isinstance(each, Tensor))
    found = prepare.processor(images=prepared, return_tensors="pt")["pixel_values"]
    assert torch.equal(found, processor(images=pictures, return_tensors="pt")["pixel_values"])
    assert prepare.leave_normalising() is None


def test_a_collator_gives_what_the_processor_makes_of_decoded_files(encode):
    contents = [make(encode) for make, _ in FILES.values()]
    rows = [{"row": 0, "id": "a", "image": {"path": None, "bytes": each}} for each in contents]
    for processor in PROCESSORS.values():
        expected = processor(images=[decode_image(each) for each in contents], return_tensors="pt")["pixel_values"]
        collator = pickle.loads(pickle.dumps(ImageCollator(processor)))
        found = collator(rows)["pixel_values"]
        assert (found - expected).abs().max() * 255 * max(processor.image_std) <= 0.01


@pytest.mark.parametrize(
    ("section", "tolerance"),
    [
        ({"horizontal_flip": 0.5, "vertical_flip": 0.5}, 2),
        ({"random_resized_crop": {"scale": [0.3, 1.0]}, "horizontal_flip": 0.5}, 2),
        ({"horizontal_flip": 0.5, "rotation": 15.0, "color_jitter": {"brightness": 0.2, "hue": 0.1}}, 8),
    ],
)
def test_pixels_change_at_random_as_pictures_do(section, tolerance):
    augmentation = build_augmentation(AugmentSection.model_validate(section), 32)
    for seed in range(8):
        torch.manual_seed(seed)
        expected = pixels_of(augmentation(photo(90, 70)))
        torch.manual_seed(seed)
        found = augmentation(pixels_of(photo(90, 70)))
        difference = (found.int() - expected.int()).abs()
        assert difference.max() <= tolerance and difference.float().mean() <= 0.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_jpegs_are_decoded_no_larger_than_need_be(encode, simplejpeg, monkeypatch, kind):
    content = encode(photo().resize((400, 301), Image.Resampling.BICUBIC), kind)
    whole = decode_pixels(content)
    for least_side, factor in ((38, 4), (75, 4), (76, 2), (150, 2), (151, 1), (1000, 1)):
        found = decode_pixels(content, least_side=least_side)
        factor = factor if kind == "JPEG" else 1
        assert found.shape == (3, -(-301 // factor), 400 // factor)
        back = torch.nn.functional.interpolate(found[None].float(), whole.shape[1:], mode="bilinear")[0]
        assert (back - whole).abs().mean() < (12 if factor > 1 else 0.01), "the same picture"
        monkeypatch.setenv(JPEG_SWITCH, "pillow")
        pixels._simplejpeg.cache_clear()
        assert decode_pixels(content, least_side=least_side).shape == found.shape
        monkeypatch.delenv(JPEG_SWITCH)
        pixels._simplejpeg.cache_clear()


def test_pixels_and_pictures_are_one_another():
    assert np.array_equal(np.asarray(picture_of(pixels_of(photo()))), np.asarray(photo()))
