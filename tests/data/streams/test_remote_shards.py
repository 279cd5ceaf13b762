"""Tars in Google's and Amazon's object stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import fsspec
import pytest
from cloud_emulators import upload

from mmhf.data.loading import LoadedData
from mmhf.data.streams.captions import StreamedCaptions
from mmhf.errors import InputError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path, write_tar: Callable[..., Path], encode: Callable[..., bytes]) -> Path:
    (tmp_path / "tars").mkdir()
    for shard in range(2):
        members = {
            name: content
            for number in range(3)
            for name, content in ((f"{number}.jpg", encode()), (f"{number}.txt", f"caption {shard}.{number}"))
        }
        write_tar(f"tars/{shard}.tar", members)
    return tmp_path / "tars"


def test_tars_are_streamed(folder: Path, load_captions: Callable[..., LoadedData], cloud_folders: list[str]) -> None:
    for url in cloud_folders:
        upload(folder, url)
        for pattern in ("*.tar", "{0..1}.tar"):
            train = load_captions(source="webdataset", train=f"{url}/{pattern}").splits["train"]
            assert isinstance(train, StreamedCaptions)
            captions = list(train.read_captions())
            assert captions == [[f"caption {shard}.{number}"] for shard in range(2) for number in range(3)]


def test_tars_that_may_not_be_read_are_named(
    load_captions: Callable[..., LoadedData], cloud_folders: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(InputError, match="none of the 1 files has a sample to use; first: 0.tar: .*credentials"):
        load_captions(source="webdataset", train=f"{cloud_folders[1]}/0.tar")
