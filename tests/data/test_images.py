from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmhf.data import images
from mmhf.data.images import BadImageError, decode_image, find_image_problem


def colour_at(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_mode_becomes_rgb(mode):
    white = Image.new("RGB", (8, 8), "white").convert(mode)
    assert min(colour_at(decode_image(white))) > 250


def test_transparency_is_put_on_white(encode):
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert colour_at(decode_image(encode(half, "PNG"))) == pytest.approx((255, 127, 127), abs=1)
    clear = Image.new("LA", (4, 4), (0, 0))
    assert colour_at(decode_image(encode(clear, "PNG"))) == (255, 255, 255)


def test_transparent_palette_entry_is_white(encode):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert colour_at(decode_image(encode(palette, "PNG", transparency=1))) == (255, 255, 255)
    assert colour_at(decode_image(encode(palette, "PNG"))) == (10, 20, 30)


def test_sixteen_bits_are_scaled(encode):
    ramp = Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369)
    decoded = np.asarray(decode_image(encode(ramp, "PNG")))[..., 0]
    assert decoded.tolist() == (np.arange(16).reshape(4, 4) * 17).tolist()


def test_floats_are_scaled(encode):
    ramp = Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
    assert (
        np.asarray(decode_image(encode(ramp, "TIFF")))[..., 0].tolist() == (np.arange(16).reshape(4, 4) * 17).tolist()
    )


def test_exif_orientation_is_applied(encode):
    picture = Image.new("RGB", (32, 16), "white")
    picture.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees clockwise when shown
    decoded = decode_image(encode(picture, "PNG", exif=exif))
    assert decoded.size == (16, 32)
    assert colour_at(decoded, 15, 0) == (0, 0, 0)
    assert colour_at(decoded, 0, 0) == (255, 255, 255)


def test_first_frame_of_an_animation(encode):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert colour_at(decode_image(content)) == (255, 0, 0)


def test_every_way_to_give_an_image(tmp_path, encode):
    content = encode("red", "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(content)
    opened = Image.open(io.BytesIO(content))
    given = [content, path, str(path), opened, {"path": str(path), "bytes": None}, {"path": "gone", "bytes": content}]
    assert [colour_at(decode_image(image)) for image in given] == [(255, 0, 0)] * len(given)


def test_the_reason_of_each_kind_of_damage(tmp_path, encode):
    jpeg = encode(Image.effect_noise((64, 64), 50).convert("RGB"))
    png = encode(Image.effect_noise((64, 64), 50), "PNG")
    reasons = {
        "missing": tmp_path / "absent.jpg",
        "empty": b"",
        "not an image": b"<!DOCTYPE html><html></html>",
        "truncated": jpeg[: len(jpeg) // 2],
        "damaged": png[: len(png) // 2],
        "no image": {"path": None, "bytes": None},
        "directory": tmp_path,
    }
    for reason, image in reasons.items():
        with pytest.raises(BadImageError, match=reason) as caught:
            decode_image(image)
        assert "\n" not in str(caught.value)


def test_problems_are_found_without_decoding_sound_files(tmp_path, encode, monkeypatch):
    sound = {"a.jpg": encode(), "b.png": encode(kind="PNG")}
    for name, content in sound.items():
        (tmp_path / name).write_bytes(content)
    odd = [encode(kind="GIF"), encode(kind="WEBP"), encode(kind="BMP"), encode() + b"\0" * 40]
    assert [find_image_problem(content) for content in odd] == [None] * len(odd)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(encode()[:-20])
    assert "truncated" in str(find_image_problem(cut)).lower()
    assert "truncated" in str(find_image_problem(encode()[:-20])).lower()
    assert "empty" in str(find_image_problem(b""))
    monkeypatch.setattr(images, "decode_image", None)  # a sound JPEG or PNG is not decoded
    assert [find_image_problem(tmp_path / name) for name in sound] == [None, None]


def test_decompression_bombs_are_refused(encode, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(BadImageError, match="too large: 24 x 16 pixels"):
        decode_image(encode())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow itself refuses more than twice as many
    with pytest.raises(BadImageError, match="too large: more than 100 pixels"):
        decode_image(encode())


def test_broken_metadata_does_not_lose_the_picture(encode):
    content = encode("red", "JPEG", exif=b"Exif\0\0garbage")
    assert decode_image(content).size == (24, 16)


def test_formats_that_run_programs_are_not_opened():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(BadImageError, match="not an image"):
        decode_image(postscript)
