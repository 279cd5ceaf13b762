from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from mmhf.data import duplicates, thumbnails
from mmhf.data.duplicates import DuplicateImage, DuplicatePair, find_duplicates, write_duplicates
from mmhf.data.loading import load_data
from mmhf.data.table import ROW_FEATURES
from mmhf.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(seed: int, side: int = 96) -> Image.Image:
    """Large soft blotches in colours of its own, as photographs have."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def table(images: list[bytes | None], labels: list[int] | None = None) -> datasets.Dataset:
    columns = {
        "row": list(range(1, len(images) + 1)),
        "id": [f"image {number}" for number in range(len(images))],
        "image": [{"path": None, "bytes": content} for content in images],
        "text": [""] * len(images),
        "label": labels or [0] * len(images),
    }
    return datasets.Dataset.from_dict(columns, features=ROW_FEATURES)


def rows_of(found: duplicates.Duplicates) -> set[tuple[str, str, int, str, int]]:
    return {(pair.kind, *pair.first[:2], *pair.second[:2]) for pair in found.pairs}


def test_equal_files_within_and_across_splits():
    images = [saved(picture(number)) for number in range(4)]
    splits = {
        "test": table([images[1], images[3]]),
        "train": table([images[0], images[1], images[0], images[2]], labels=[0, 1, 1, 0]),
    }
    found = find_duplicates(splits, near=False)
    assert rows_of(found) == {("exact", "train", 1, "train", 3), ("exact", "train", 2, "test", 1)}
    assert [pair.crosses_splits for pair in found.pairs] == [True, False]
    assert [pair.same_label for pair in found.pairs] == [False, False]
    assert {position: image.id for position, image in found.leaks.items()} == {1: "image 0"}


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved anew": lambda image: Image.open(io.BytesIO(saved(image, quality=30))),
    "halved": lambda image: image.resize((48, 48), Image.Resampling.LANCZOS),
    "doubled": lambda image: image.resize((200, 190), Image.Resampling.BICUBIC),
    "a little brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.03),
    "with a palette": lambda image: image.quantize(256),
    "much larger": lambda image: image.resize((800, 800), Image.Resampling.BICUBIC),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_picture_in_another_file(change):
    originals = [picture(number) for number in range(30)]
    kind = {"with a palette": "PNG"}.get(change, "JPEG")
    splits = {
        "train": table([saved(image) for image in originals]),
        "validation": table([saved(CHANGES[change](originals[number]), kind) for number in (4, 17)]),
    }
    found = find_duplicates(splits)
    assert rows_of(found) == {("near", "train", 5, "validation", 1), ("near", "train", 18, "validation", 2)}
    assert set(found.leaks) == {4, 17}
    assert not find_duplicates(splits, near=False).pairs


def with_square(image: Image.Image) -> Image.Image:
    changed = image.copy()
    changed.paste("red" if image.getpixel((48, 48))[0] < 128 else "cyan", (40, 40, 56, 56))
    return changed


OTHERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "turned": lambda image: image.rotate(90),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "other colours": lambda image: Image.merge("RGB", image.split()[::-1]),
    "with an object": with_square,
}


@pytest.mark.parametrize("change", OTHERS)
def test_other_pictures(change):
    originals = [picture(number) for number in range(30)]
    changed = [OTHERS[change](image) for image in originals]
    splits = {
        "train": table([saved(image) for image in originals]),
        "test": table([saved(image) for image in changed]),
    }
    assert not find_duplicates(splits).pairs


def test_dark_or_pale_pictures_are_not_all_the_same():
    def faint(seed: int) -> bytes:
        return saved(Image.eval(picture(seed), lambda value: 20 + value // 30), "PNG")

    assert not find_duplicates({"train": table([faint(number) for number in range(30)])}).pairs


def test_images_of_one_colour_are_blank_and_leak_nothing():
    white, grey = (saved(Image.new("RGB", (40, 40), colour)) for colour in ("white", "#fdfdfd"))
    found = find_duplicates(
        {"train": table([white, white, saved(picture(0))]), "test": table([grey, saved(picture(0))])}
    )
    assert {pair.kind for pair in found.pairs if pair.first.row != 3} == {"blank"}
    assert [pair.kind for pair in found.pairs if pair.first.row == 3] == ["exact"]
    assert set(found.leaks) == {2}
    assert "blank" in duplicates.describe_duplicates(found)


def test_broken_and_absent_images_are_passed_over():
    images = [None, None, b"<html>", b"<html>", saved(picture(0))]
    found = find_duplicates({"train": table(images), "test": table([None])})
    assert rows_of(found) == {("exact", "train", 3, "train", 4)}  # the same file, whatever it is
    assert not find_duplicates({"train": table([None])}).pairs
    assert not find_duplicates({}).pairs


def test_a_training_image_is_found_in_test_however_many_copies_there_are():
    """The nearest neighbours of an image in its own split do not crowd out those in another."""
    copies = [saved(picture(0), quality=quality) for quality in range(60, 90)]
    found = find_duplicates({"train": table(copies), "test": table([saved(picture(0), quality=95)])})
    assert set(found.leaks) == set(range(30))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=6), st.data())
@pytest.mark.slow
def test_leaks_are_the_training_images_that_are_elsewhere(train, test, data):
    """Each picture in one of two encodings: equal files and near ones together."""

    def encode(numbers: list[int]) -> list[bytes]:
        return [saved(picture(number), quality=data.draw(st.sampled_from([70, 90]))) for number in numbers]

    splits = {"train": table(encode(train), train), "test": table(encode(test), test)}
    found = find_duplicates({split: part for split, part in splits.items() if len(part)})
    leaked = {position for position, number in enumerate(train) if number in test}
    assert set(found.leaks) == (leaked if train and test else set())
    assert all(pair.same_label for pair in found.pairs)
    pairs = {frozenset((pair.first, pair.second)) for pair in found.pairs}
    assert len(pairs) == len(found.pairs)


def test_thumbnails_are_made_once(monkeypatch):
    splits = {"train": table([saved(picture(number % 3), quality=60 + number) for number in range(6)])}
    found = find_duplicates(splits)
    monkeypatch.setattr(thumbnails, "decode_image", None)
    assert find_duplicates(splits) == found and len(found.pairs) == 3


def test_pairs_are_found_once(monkeypatch):
    images = [saved(picture(number % 3), quality=60 + number) for number in range(6)]
    splits = {"train": table(images[:4]), "test": table(images[4:])}
    found = find_duplicates(splits)
    with monkeypatch.context() as patch:
        patch.setattr(thumbnails, "cKDTree", None)
        assert find_duplicates(splits) == found and found.leaks
    moved = find_duplicates({"train": table(images[:2]), "test": table(images[2:])})
    assert moved != found and len(moved.pairs) == len(found.pairs)


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path, caplog):
    splits = {"train": table([saved(picture(number % 3), quality=60 + number) for number in range(6)])}
    expected = find_duplicates(splits)
    (tmp_path / "in the way").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "in the way")
    assert find_duplicates(splits) == expected and "cannot be written" in caplog.text


@pytest.mark.parametrize("place", [0.02, 0.3, 0.5, 0.9, 0.99, None], ids=str)
def test_damaged_thumbnails_are_made_anew(place, tmp_path, caplog):
    splits = {"train": table([saved(picture(number % 3), quality=60 + number) for number in range(6)])}
    found = find_duplicates(splits)
    files = list((tmp_path / "cache" / "mmhf_thumbnails").glob("*.npz"))
    for file in files:
        content = bytearray(file.read_bytes())
        if place is None:
            content = content[:100]
        else:
            content[int(len(content) * place)] ^= 0x40
        file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert find_duplicates(splits) == found
    assert len(files) == 2 and ("is damaged" in caplog.text or place not in (0.3, 0.5, None))


def test_progress_is_shown_for_many_images(monkeypatch):
    splits = {"train": table([saved(picture(number)) for number in range(5)])}
    monkeypatch.setattr(duplicates, "_PROGRESS_ABOVE", 2)
    assert not find_duplicates(splits).pairs


@pytest.fixture
def folder(tmp_path):
    """Of 6 training images, one is in test as it is, one saved anew; and there is one pair within train."""
    for split, numbers in (("train", range(6)), ("test", range(10, 14))):
        for number in numbers:
            place = tmp_path / "data" / split / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.jpg").write_bytes(saved(picture(number)))
    train, test = tmp_path / "data" / "train", tmp_path / "data" / "test"
    (test / "a" / "copy.jpg").write_bytes((train / "a" / "0.jpg").read_bytes())
    (test / "a" / "small.png").write_bytes(saved(picture(3).resize((64, 64)), "PNG"))
    (train / "b" / "twin.jpg").write_bytes((train / "b" / "1.jpg").read_bytes())
    return tmp_path / "data"


def load(section, folder, *, splits=None, **values):
    return load_data(
        section(source="image_folder", path=str(folder), **values), task="image-classification", splits=splits
    )


def test_loading_reports_them(section, folder, caplog):
    data = load(section, folder)
    assert [(pair.kind, pair.first.id, pair.second.id, pair.same_label) for pair in data.duplicates] == [
        ("exact", "train/a/0.jpg", "test/a/copy.jpg", True),
        ("near", "train/b/3.jpg", "test/a/small.png", False),
        ("exact", "train/b/1.jpg", "train/b/twin.jpg", True),
    ]
    assert "2 exact (1 across splits, 0 with different labels), 1 near (1 across splits, 1 with" in caplog.text
    assert "2 training images are in validation or test" in caplog.text
    assert data.num_rows("train") == 7 and not data.bad_examples


@pytest.mark.parametrize(("find", "pairs"), [("exact", 2), ("never", 0)])
def test_how_to_look_for_them(section, folder, caplog, find, pairs):
    with caplog.at_level(logging.WARNING):
        assert len(load(section, folder, find_duplicates=find).duplicates) == pairs
    assert ("duplicate" in caplog.text) is bool(pairs)


@pytest.mark.parametrize("splits", [None, ["train"]])
def test_training_images_that_are_in_test_can_be_left_out(section, folder, splits):
    data = load(section, folder, on_duplicate="skip_across_splits", splits=splits)
    kept = data.splits["train"]["id"][:]
    assert kept == ["train/a/2.jpg", "train/a/4.jpg", "train/b/1.jpg", "train/b/5.jpg", "train/b/twin.jpg"]
    assert [(example.id, example.reason) for example in data.bad_examples] == [
        ("train/a/0.jpg", "the image is in test, too, as test/a/copy.jpg"),
        ("train/b/3.jpg", "the image is in test, too, as test/a/small.png"),
    ]
    assert set(data.splits) == set(splits or ("train", "test"))


def test_nothing_left_to_train_on(section, folder):
    (folder / "test" / "b").rename(folder / "test" / "c")
    for image in (folder / "train").glob("*/*.jpg"):
        (folder / "test" / "c" / f"copy of {image.name}").write_bytes(image.read_bytes())
    with pytest.raises(InputError, match="every training image is in validation or test"):
        load(section, folder, on_duplicate="skip_across_splits")


def test_pairs_as_a_table(tmp_path):
    first, second = DuplicateImage("train", 3, "a.jpg"), DuplicateImage("test", 1, "b, c.jpg")
    write_duplicates(tmp_path / "duplicates.csv", [DuplicatePair("near", first, second, True, 1.25)])
    header, row = (tmp_path / "duplicates.csv").read_text().splitlines()
    assert header == "kind,split,id,other_split,other_id,same_label,distance"
    assert row == 'near,train,a.jpg,test,"b, c.jpg",True,1.250'
