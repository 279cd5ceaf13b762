from __future__ import annotations

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from mmhf.data.pixel_statistics import PixelSums, sum_pixels
from mmhf.data.table import IMAGE_FEATURE, NO_IMAGE
from mmhf.errors import InputError

SIDE = 8


@pytest.fixture(scope="module")
def processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (10, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def rows(pixels, encode) -> datasets.Dataset:
    images = [{"path": None, "bytes": encode(Image.fromarray(each), "PNG")} for each in pixels]
    images += [NO_IMAGE, {"path": None, "bytes": b"broken"}, {"path": "/absent.png", "bytes": None}]
    return datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": IMAGE_FEATURE}))


def test_mean_and_deviation_are_those_of_all_pixels(rows, pixels, processor):
    sums = sum_pixels(rows, processor)
    mean, std = sums.mean_std()
    assert sums.num_images == 10
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)) / 255, rtol=1e-12)


def test_normalised_images_have_mean_0_and_deviation_1(rows, pixels, processor):
    mean, std = sum_pixels(rows, processor).mean_std()
    own = CLIPImageProcessor(**{**processor.to_dict(), "image_mean": mean, "image_std": std})
    values = own([Image.fromarray(each) for each in pixels], return_tensors="pt")["pixel_values"]
    assert values.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (values.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("num_shards", [2, 3, 20])
@pytest.mark.parametrize("streamed", [False, True])
def test_shards_and_streams_add_up_to_the_bit(rows, processor, num_shards, streamed):
    whole = sum_pixels(rows, processor).mean_std()
    table = rows.to_iterable_dataset() if streamed else rows
    shards = [sum_pixels(table, processor, shard=index, num_shards=num_shards) for index in range(num_shards)]
    assert sum(shards, PixelSums()).mean_std() == whole


def test_nothing_to_measure_is_an_error(rows, processor, encode):
    with pytest.raises(InputError, match="no training image can be read"):
        sum_pixels(rows.select([10, 11, 12]), processor).mean_std()
    red = [{"path": None, "bytes": encode("red", "PNG")}] * 2
    flat = datasets.Dataset.from_dict({"image": red}, features=rows.features)
    with pytest.raises(InputError, match="one and the same colour"):
        sum_pixels(flat, processor).mean_std()
