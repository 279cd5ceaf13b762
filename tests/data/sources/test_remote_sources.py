"""Each source that reads folders reads them behind a URL, and finds the same there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pandas as pd
import pytest
from cloud_emulators import upload

from mmhf.data.images import decode_image
from mmhf.data.loading import LoadedData, load_data
from mmhf.errors import InputError

_URL = "memory://sources/data"
_NUM_IMAGES = 6


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    fsspec.filesystem("memory").rm("/sources", recursive=True)


@pytest.fixture
def write_images(tmp_path: Path, encode: Callable[..., bytes]) -> Callable[..., Path]:
    """Write images of different colours under these names below a folder."""

    def write(names: list[str]) -> Path:
        for number, name in enumerate(names):
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(f"rgb({number * 30}, {number}, 9)", "PNG"))
        return tmp_path / "data"

    return write


def _same(folder: Path, load: Callable[[str], LoadedData]) -> LoadedData:
    """Load the folder from disk and from memory, and compare."""
    upload(folder, _URL)
    local, remote = load(str(folder)), load(_URL)
    assert remote.fingerprint() == local.fingerprint()
    for split, table in local.splits.items():
        found = remote.splits[split]
        assert isinstance(table, datasets.Dataset) and isinstance(found, datasets.Dataset)
        columns = [name for name in table.column_names if name != "image"]
        assert [found[name][:] for name in columns] == [table[name][:] for name in columns]
        for one, other in zip(found, table, strict=True):
            assert decode_image(one["image"]).tobytes() == decode_image(other["image"]).tobytes()
    assert [example[:3] for example in remote.bad_examples] == [example[:3] for example in local.bad_examples]
    return remote


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_each_kind(section: Callable[..., Any], write_images: Callable[..., Path], kind: str) -> None:
    names = [f"imgs/{number}.png" for number in range(_NUM_IMAGES)]
    folder = write_images(names)
    frame = pd.DataFrame({"image": names, "text": [f"text {name}" for name in names], "label": ["a", "b"] * 3})
    writers: dict[str, Callable[[Path], object]] = {
        "csv": lambda path: frame.to_csv(path, index=False),
        "tsv": lambda path: frame.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda path: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda path: frame.to_parquet(path),
    }
    (folder / "tables").mkdir()
    writers[kind](folder / "tables" / f"all.{kind}")
    _same(
        folder,
        lambda place: load_data(
            section(
                source="table",
                path=f"{place}/tables/all.{kind}",
                image_root=place,
                split={"validation": 0.5, "test": 0.0},
            )
        ),
    )


def test_a_table_on_disk_may_name_images_behind_a_url(
    section: Callable[..., Any], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    names = [f"{number}.png" for number in range(_NUM_IMAGES)]
    folder = write_images(names)
    lines = ["image,text,label", *(f"{name},t,{number % 2}" for number, name in enumerate(names))]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    data = _same(
        folder,
        lambda place: load_data(
            section(
                source="table", path=str(tmp_path / "all.csv"), image_root=place, split={"validation": 0, "test": 0}
            )
        ),
    )
    assert data.num_rows("train") == _NUM_IMAGES


def test_clinical_tables(section: Callable[..., Any], write_images: Callable[..., Path]) -> None:
    names = [f"v2/isic/{number}.jpg" for number in range(4)] + [f"v2/ddi/imgs/{number}.png" for number in range(2)]
    folder = write_images(names)
    rows = [f"{number},p{number},nevus,male,{30 + number},3" for number in range(4)]
    (folder / "v2/isic.csv").write_text(
        "\n".join(["image_name,patient_id,diagnosis,sex,age_approx,anatom_site", *rows])
    )
    (folder / "v2/ddi/table.csv").write_text(
        "DDI_ID,DDI_file,disease,skin_tone\n1,0.png,melanoma,12\n2,1.png,melanoma,56"
    )
    tables = {
        "isic2020": {"table": "isic.csv", "images": "isic"},
        "ddi": {"table": "ddi/table.csv", "images": "ddi/imgs"},
    }
    chosen = {"on_empty_text": "blank", "split": {"validation": 0.0, "test": 0.0}}

    def load(place: str) -> LoadedData:
        path = f"{place}/{{version}}"
        return load_data(section(source="clinical", path=path, version="v2", tables=tables, **chosen))

    assert _same(folder, load).num_rows("train") == 6


def test_class_folders(section: Callable[..., Any], write_images: Callable[..., Path]) -> None:
    folder = write_images([f"raw/{'ab'[number % 2]} (c), d/{number}.PNG" for number in range(_NUM_IMAGES)])
    (folder / "raw" / "readme.txt").write_text("not an image")
    chosen = {"split": {"validation": 0.0, "test": 0.0}}
    data = _same(
        folder,
        lambda place: load_data(section(source="image_folder", path=place, **chosen), task="image-classification"),
    )
    assert data.label_names == ["a (c), d", "b (c), d"]


def test_a_folder_with_metadata(load_captions: Callable[..., LoadedData], write_images: Callable[..., Path]) -> None:
    folder = write_images([f"train/{number}.png" for number in range(4)] + ["validation/deep/9.png"])
    for split, names in (("train", ["0.png", "1.png", "2.png"]), ("validation", ["deep/9.png"])):
        lines = [json.dumps({"file_name": name, "caption": f"caption of {name}"}) for name in names]
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))
    data = _same(folder, lambda place: load_captions(source="table", path=place))
    assert [(example.split, example.id) for example in data.bad_examples] == [("train", "3.png")]


@pytest.mark.parametrize("kind", ["csv", "karpathy"])
def test_flickr30k(load_captions: Callable[..., LoadedData], write_images: Callable[..., Path], kind: str) -> None:
    names = [f"{number}.jpg" for number in range(_NUM_IMAGES)]
    folder = write_images([f"flickr30k_images/flickr30k_images/{name}" for name in names])
    split: dict[str, Any] = {"split": {"validation": 0.5, "test": 0.0}} if kind == "csv" else {}
    if kind == "csv":
        rows = [f"{name}| {number}| caption {number} ." for name in names for number in range(5)]
        (folder / "flickr30k_images" / "results.csv").write_text(
            "\n".join(["image_name| comment_number| comment", *rows])
        )
    else:
        images = [
            {"filename": name, "split": "train" if number else "val", "sentences": [{"raw": f"caption {number}"}]}
            for number, name in enumerate(names)
        ]
        (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    _same(folder, lambda place: load_captions(source="flickr30k", path=place, **split))


def test_duplicates_are_found_behind_a_url(
    caption_section: Callable[..., Any], write_images: Callable[..., Path]
) -> None:
    folder = write_images([f"{number}.png" for number in range(_NUM_IMAGES)])
    (folder / "copy.png").write_bytes((folder / "3.png").read_bytes())
    names = [*(f"{number}.png" for number in range(_NUM_IMAGES)), "copy.png"]
    (folder / "metadata.csv").write_text("\n".join(["file_name,caption", *(f"{name},a picture" for name in names)]))
    data = _same(
        folder,
        lambda place: load_data(
            caption_section(source="table", path=place, find_duplicates="exact", split={"validation": 0, "test": 0}),
            task="image-captioning",
        ),
    )
    assert [(pair.first.id, pair.second.id) for pair in data.duplicates] == [("3.png", "copy.png")]


def test_nothing_behind_a_url_is_named(load_captions: Callable[..., LoadedData], section: Callable[..., Any]) -> None:
    fsspec.filesystem("memory").pipe("/sources/other", b"")
    for values in ({"source": "flickr30k"}, {"source": "table"}):
        with pytest.raises(InputError, match="memory://sources/nothing"):
            load_captions(path="memory://sources/nothing", **values)
    with pytest.raises(InputError, match="data.path: no such folder: memory://sources/nothing"):
        load_data(section(source="fakeddit", path="memory://sources/nothing"))
    with pytest.raises(InputError, match="memory://sources/nothing.csv: no such file"):
        load_data(section(source="table", path="memory://sources/nothing.csv"))
