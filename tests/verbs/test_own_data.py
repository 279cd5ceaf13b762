"""Data in memory becomes a table in the cache."""

from __future__ import annotations

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_data import picture

from mmhf.errors import InputError
from mmhf.verbs.own_data import columns_of, resolve, with_own_data, write_table


class Torch(torch.utils.data.Dataset):
    classes = ["cat", "dog"]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Image.new("RGB", (8, 8)), index % 2


def test_torch_hf_and_pandas_columns():
    columns = columns_of(Torch())
    assert columns["label"] == ["cat", "dog", "cat", "dog"] and columns["image"][0].size == (8, 8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": picture(1), "path": None}] * 2, "label": [1, 0]}
    columns = columns_of(datasets.Dataset.from_dict(rows, features))
    assert columns["label"] == ["dog", "cat"] and columns["image"][0]["bytes"] == picture(1)
    frame = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", None]})
    assert columns_of(frame) == {"a": [1.0, None], "b": ["x", None]}


def test_the_same_data_is_the_same_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture(1))
    rows = [{"image": tmp_path / "a.jpg"}, {"image": Image.new("L", (4, 4))}, {"image": np.zeros((4, 4, 3), np.uint8)}]
    first, second = write_table(rows, "image"), write_table(rows, "image")
    assert first == second and first.image_root == str(tmp_path)
    written = pq.read_table(first.path)["image"].to_pylist()
    assert written[0] == {"path": str(tmp_path / "a.jpg"), "bytes": None} and written[1]["bytes"].startswith(
        b"\x89PNG"
    )
    assert write_table(rows[:1], "image").path != first.path


def test_what_the_recipe_keeps_of_its_data_section():
    rows = [{"image": picture(1), "label": "a"}]
    data = {"source": "sample", "image_size": 48, "limit": 9, "max_length": 32}  # what the sample's texts are cut to
    values = {"task": "image-classification", "data": data}
    data = with_own_data(values, {"path": rows})["data"]
    assert data.keys() == {"source", "path", "image_size", "limit"} and data["source"] == "table"
    values["data"] = {"source": "table", "path": "x.csv", "image_root": "y", "filters": {}, "columns": {"label": "z"}}
    data = with_own_data(values, {"test": rows})["data"]
    assert data.keys() == {"source", "test", "columns"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no rows"),
        ([{"image": torch.zeros(3, 4, 4)}], "an image is a Tensor"),
        ([3], "a row of the data is a int"),
        (iter([{"image": b""}]), "no length"),
    ],
)
def test_what_cannot_be_read(rows, says):
    with pytest.raises(InputError, match=says):
        write_table(rows, "image")


def test_a_lone_eval_dataset_is_refused(recipe, rows):
    with pytest.raises(InputError, match="without train_dataset"):
        resolve(recipe, eval_dataset=rows)
