"""Data in a repository of the Hub, by its hf:// URL."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfFileSystem
from loopback_hub import LoopbackHub
from PIL import Image
from pydantic import TypeAdapter

from mmhf.data.images import BadImageError, decode_image
from mmhf.data.loading import LoadedData, load_data
from mmhf.recipe.data_sources import DataSection

_REPO = "org/derm"


def _image(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name, colour in (("a", "red"), ("b", "lime")):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").write_bytes(_image(colour))
    (folder / "all.csv").write_text("image,text,label\na/0.png,red,x\nb/0.png,green,y\n")
    return folder


def _load(place: object, tmp_path: Path) -> LoadedData:
    HfFileSystem.clear_instance_cache()
    values = {
        "source": "table",
        "path": f"{place}/all.csv",
        "split": {"validation": 0.0, "test": 0.0},
        "cloud": {"cache_dir": str(tmp_path / "copies"), "retries": 0},
    }
    section: Any = TypeAdapter(DataSection).validate_python(values)
    return load_data(section)


def _colours(data: LoadedData) -> list[tuple[str, Any]]:
    return [(row["text"], decode_image(row["image"]).getpixel((0, 0))) for row in data.splits["train"]]


def test_a_repository_gives_the_rows_of_the_folder_and_a_changed_file_is_named(
    hub: LoopbackHub, folder: Path, tmp_path: Path
) -> None:
    api = huggingface_hub.HfApi(endpoint=hub.endpoint)
    api.create_repo(_REPO)
    api.upload_folder(repo_id=_REPO, folder_path=folder)
    expected = _load(folder, tmp_path)
    found = _load(f"hf://{_REPO}", tmp_path)
    api.upload_file(path_or_fileobj=_image("blue"), path_in_repo="b/0.png", repo_id=_REPO)
    rows = found.splits["train"]
    assert decode_image(rows[0]["image"]).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(BadImageError, match="it has changed since the data was loaded"):
        decode_image(rows[1]["image"])
    assert found.fingerprint() == expected.fingerprint()
    assert _colours(_load(f"hf://{_REPO}", tmp_path)) == [("red", (255, 0, 0)), ("green", (0, 0, 255))]
