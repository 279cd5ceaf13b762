from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cloud_emulators import upload

from mmhf.data.images import decode_image
from mmhf.data.loading import LoadedData, load_data

_COLUMNS = {"image": "image", "text": "text", "label": "label"}


@pytest.fixture
def folder(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """A table of twelve images below `imgs`."""
    folder = tmp_path / "v1"
    lines = ["image,text,label"]
    for number in range(12):
        path = folder / "imgs" / f"{number % 3}" / f"{number:02d} of 12.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(f"rgb({number * 20}, {number}, 0)", "PNG"))
        lines.append(f"imgs/{number % 3}/{path.name},case {number},{'ab'[number % 2]}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def load(section: Callable[..., Any], tmp_path: Path) -> Callable[..., LoadedData]:
    def load(place: object, *, check_images: bool = True, **values: Any) -> LoadedData:
        cloud = {"cache_dir": str(tmp_path / "copies"), "retries": 0, **values.pop("cloud", {})}
        chosen = {"split": {"validation": 0.25, "test": 0.0, "seed": 1}, "columns": _COLUMNS, **values}
        return load_data(
            section(source="table", path=f"{place}/metadata.csv", cloud=cloud, **chosen), check_images=check_images
        )

    return load


def _colours(data: LoadedData) -> dict[str, list[tuple[str, Any]]]:
    return {
        split: [(row["text"], decode_image(row["image"]).getpixel((0, 0))) for row in table]
        for split, table in data.splits.items()
    }


def test_local_gs_and_s3_give_the_same_rows(
    folder: Path, load: Callable[..., LoadedData], cloud_folders: list[str]
) -> None:
    expected = load(folder)
    for url in cloud_folders:
        upload(folder, url)
        found = load(url)
        assert _colours(found) == _colours(expected)
        assert found.fingerprint() == expected.fingerprint()
        assert found.label_names == expected.label_names
    shutil.rmtree(folder)
    assert _colours(load(cloud_folders[0])) == _colours(load(cloud_folders[1]))
