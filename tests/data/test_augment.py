from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mmhf.data.augment import Flips, OnPicture, ShrinkToSide, build_augmentation
from mmhf.recipe.augment_sections import AugmentSection

EVERYTHING = {
    "random_resized_crop": {"scale": [0.5, 1.0]},
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "rotation": 15.0,
    "affine": {"scale": [0.8, 1.2], "translate": [0.1, 0.1], "shear": 5.0},
    "color_jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
    "grayscale": 0.1,
    "perspective": {"distortion": 0.2},
    "rand_augment": {"num_ops": 2, "magnitude": 9},
    "gaussian_blur": {"sigma": [0.1, 1.0]},
    "random_erasing": {"probability": 0.5},
}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Left half red, right half blue; darker towards the bottom."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30, 0] = 255
    pixels[:, 30:, 2] = 255
    return Image.fromarray((pixels * np.linspace(1, 0.5, 40)[:, None, None]).astype(np.uint8))


def change(picture: Image.Image, seed: int = 0, size: int | tuple[int, int] = 32, **section: object) -> np.ndarray:
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


def test_erasing_covers_one_rectangle_with_the_grey_level(picture):
    plain = change(picture, horizontal_flip=1e-12)
    erased = change(picture, 2, random_erasing={"probability": 1.0, "scale": [0.2, 0.2]}, fill=99)
    hole = (erased == 99).all(axis=2)
    rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
    assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert hole.mean() == pytest.approx(0.2, abs=0.03)
    assert np.array_equal(erased[~hole], plain[~hole])


def test_blur_softens_the_edge(picture):
    plain = change(picture, horizontal_flip=1e-12)
    blurred = change(picture, gaussian_blur={"sigma": [2.0, 2.0], "kernel_size": 9, "probability": 1.0})
    assert np.abs(np.diff(blurred[16, :, 0])).max() < 0.5 * np.abs(np.diff(plain[16, :, 0])).max()


def test_perspective_tilts_and_fills(picture):
    tilted = change(picture, 1, perspective={"distortion": 0.6, "probability": 1.0}, fill=200)
    assert (tilted == 200).all(axis=2).any() and tilted.shape == (32, 48, 3)


def test_rand_augment_grows_with_its_magnitude(picture):
    plain = change(picture, horizontal_flip=1e-12)

    def mean_change(magnitude: int) -> float:
        policy = {"num_ops": 2, "magnitude": magnitude}
        return float(
            np.mean([np.abs(change(picture, seed, rand_augment=policy) - plain).mean() for seed in range(40)])
        )

    assert mean_change(25) > mean_change(9) > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gaussian_blur": {"kernel_size": 4}}, "must be odd"),
        ({"random_erasing": {"scale": [0.5, 1.5]}}, "share of the image's area"),
        ({"random_erasing": {"ratio": [3.0, 0.3]}}, "the smallest first"),
        ({"rand_augment": {"magnitude": 31}}, "less than or equal to 30"),
    ],
)
def test_impossible_values(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentSection.model_validate(values)


def test_changes_come_in_the_order_of_the_recipe():
    augmentation = build_augmentation(AugmentSection.model_validate(EVERYTHING), 32)
    changes = [
        change
        for each in augmentation.transforms
        for change in (each.change.transforms if isinstance(each, OnPicture) else [each])
    ]
    names = [type(change).__name__ for change in changes]
    assert names == [
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "RandomVerticalFlip",
        "RandomRotation",
        "RandomAffine",
        "RandomPerspective",
        "RandAugment",
        "ColorJitter",
        "RandomGrayscale",
        "RandomApply",
        "EraseRectangle",
    ]


def test_rectangles_are_covered_and_cropped_to(picture):
    """The picture is 40 high and 60 wide."""
    assert change(picture, size=(20, 40), horizontal_flip=1.0).shape == (27, 40, 3)
    assert change(picture, size=(30, 20), horizontal_flip=1.0).shape == (30, 45, 3)
    assert change(picture, size=(50, 20), horizontal_flip=1.0).shape == (40, 60, 3)
    assert change(picture, size=(24, 16), **EVERYTHING).shape == (24, 16, 3)


def test_flips_alone_are_views_that_a_seed_chooses_from(picture):
    section = AugmentSection(horizontal_flip=0.4, vertical_flip=0.5)
    flips = build_augmentation(section, 32)
    assert isinstance(flips, Flips) and flips.num_views == 4
    before = v2.Compose([ShrinkToSide(32), v2.RandomHorizontalFlip(0.4), v2.RandomVerticalFlip(0.5)])
    chosen = set()
    for seed in range(80):
        torch.manual_seed(seed)
        expected = np.asarray(before(picture))
        torch.manual_seed(seed)
        assert np.array_equal(np.asarray(flips(picture)), expected)
        assert np.array_equal(np.asarray(flips.view(picture, flips.view_of(seed))), expected)
        chosen.add(flips.view_of(seed))
    assert chosen == {0, 1, 2, 3}
    assert not isinstance(build_augmentation(AugmentSection(horizontal_flip=0.4, grayscale=0.1), 32), Flips)
    crop = {"random_resized_crop": {}, "horizontal_flip": 0.5}
    assert not isinstance(build_augmentation(AugmentSection.model_validate(crop), 32), Flips)
