from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mmhf.data.augmentation import build_augmentation
from mmhf.recipe.schema import AugmentSection

EVERYTHING = {
    "random_resized_crop": {"scale": [0.5, 1.0]},
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "rotation": 15.0,
    "affine": {"scale": [0.8, 1.2], "translate": [0.1, 0.1], "shear": 5.0},
    "color_jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
    "grayscale": 0.1,
}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Left half red, right half blue; darker towards the bottom."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30, 0] = 255
    pixels[:, 30:, 2] = 255
    return Image.fromarray((pixels * np.linspace(1, 0.5, 40)[:, None, None]).astype(np.uint8))


def change(picture: Image.Image, seed: int = 0, size: int = 32, **section: object) -> np.ndarray:
    augmentation = build_augmentation(AugmentSection.model_validate(section), size)
    assert augmentation is not None
    torch.manual_seed(seed)
    return np.asarray(augmentation(picture)).astype(int)


def test_nothing_to_do_is_nothing():
    assert build_augmentation(None, 32) is None
    assert build_augmentation(AugmentSection(), 32) is None


def test_a_seed_decides_everything(picture):
    assert np.array_equal(change(picture, 1, **EVERYTHING), change(picture, 1, **EVERYTHING))
    assert not np.array_equal(change(picture, 1, **EVERYTHING), change(picture, 2, **EVERYTHING))
    assert change(picture, 1, **EVERYTHING).shape == (32, 32, 3)


def test_flips(picture):
    assert change(picture, horizontal_flip=1.0)[16, 0, 2] > 150
    upside_down = change(picture, vertical_flip=1.0)
    assert upside_down[0, 0, 0] < upside_down[-1, 0, 0]


def test_grayscale(picture):
    grey = change(picture, grayscale=1.0)
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_rotation_fills_the_corners_with_the_grey_level(picture):
    white = Image.new("RGB", (32, 32), "white")
    corners = [change(white, seed, rotation=45.0, fill=77)[0, 0, 0] for seed in range(5)]
    assert 77 in corners


@pytest.mark.parametrize("key", ["brightness", "contrast", "saturation", "hue"])
def test_each_part_of_colour_jitter_works_alone(picture, key):
    amount = 0.4
    plain = np.asarray(picture.resize((48, 32), Image.Resampling.BICUBIC, reducing_gap=3.0)).astype(int)
    assert np.abs(change(picture, 3, color_jitter={key: amount}) - plain).max() > 5
    assert np.array_equal(change(picture, 3, color_jitter={"brightness": 0.0}), plain)


def test_large_images_are_shrunk_first_and_small_ones_left(picture):
    assert change(picture, size=20, horizontal_flip=1.0).shape == (20, 30, 3)
    assert change(picture, size=100, horizontal_flip=1.0).shape == (40, 60, 3)


def test_affine_moves_and_scales(picture):
    moved = change(picture, 4, affine={"translate": [0.4, 0.0]}, fill=200)
    assert (moved == 200).all(axis=(0, 2)).any()
    shrunk = change(picture, 0, affine={"scale": [0.5, 0.5]}, fill=200)
    assert (shrunk[0] == 200).all() and (shrunk[:, 0] == 200).all() and (shrunk[16, 24] != 200).any()


def test_it_can_be_sent_to_workers(picture):
    augmentation = build_augmentation(AugmentSection.model_validate(EVERYTHING), 32)
    copy = pickle.loads(pickle.dumps(augmentation))
    torch.manual_seed(1)
    expected = np.asarray(augmentation(picture))
    torch.manual_seed(1)
    assert np.array_equal(np.asarray(copy(picture)), expected)
