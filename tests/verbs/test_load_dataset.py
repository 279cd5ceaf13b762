"""The data of a recipe as `datasets` knows data."""

from __future__ import annotations

import csv

import datasets
import numpy as np
import pytest
from PIL import Image

import mmhf
from mmhf.errors import InputError


@pytest.mark.slow
def test_a_recipes_data_is_a_dataset_dict():
    data = mmhf.load_dataset("quickstart/fusion", ["data.limit=5"])
    assert isinstance(data, datasets.DatasetDict) and {"train", "validation", "test"} <= set(data)
    assert isinstance(data["train"].features["image"], datasets.Image)
    assert isinstance(data["train"].features["label"], datasets.ClassLabel)
    row = data["train"][0]
    assert isinstance(row["image"], Image.Image) and isinstance(row["text"], str)
    captions = mmhf.load_dataset("quickstart/captioner", ["data.limit=5"], splits=["validation"])
    assert list(captions) == ["validation"] and isinstance(captions["validation"][0]["captions"], list)


@pytest.fixture
def tables(tmp_path):
    """A table and a folder of images a split, with the same names in both."""
    for split, shade in (("train", 10), ("validation", 200)):
        (tmp_path / f"{split}_images").mkdir()
        with (tmp_path / f"{split}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["image", "text", "label"])
            for number in range(4):
                pixels = np.full((20, 20, 3), shade + number, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"{split}_images" / f"{number}.png")
                writer.writerow([f"{number}.png", "a text", number % 2])
    return tmp_path


def recipe(folder, roots):
    files = {split: str(folder / f"{split}.csv") for split in ("train", "validation")}
    data = {"source": "table", **files, "image_root": roots, "image_size": 32}
    return {"task": "image-text-classification", "data": data}


def test_each_split_may_have_an_image_root_of_its_own(tables):
    roots = {split: str(tables / f"{split}_images") for split in ("train", "validation")}
    data = mmhf.load_dataset(recipe(tables, roots))
    assert data["train"][0]["image"].getpixel((0, 0))[0] < 20
    assert data["validation"][0]["image"].getpixel((0, 0))[0] >= 200
    with pytest.raises(InputError, match="no such folder"):
        mmhf.load_dataset(recipe(tables, {**roots, "validation": str(tables / "absent")}))
    with pytest.raises(InputError, match="image_root.test: there is no file `test`"):
        mmhf.load_dataset(recipe(tables, {**roots, "test": "x"}))
