"""A prepared folder holds the rows of its recipe, or is refused in words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from mmhf.data import preparing
from mmhf.data.caption_datasets import CaptionDataset
from mmhf.data.datasets import RowDataset
from mmhf.data.loading import LoadedData, load_data
from mmhf.data.pixels import decode_pixels
from mmhf.data.preparing import prepare
from mmhf.data.table import Reading
from mmhf.errors import DamagedError, InputError
from mmhf.recipe.data_sources import DataSection

SIDE = 32
_SECTIONS: TypeAdapter[Any] = TypeAdapter(DataSection)
CLASSES = Reading(label=True)


def picture(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    blotches = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes in three splits, with a bad file, a duplicate across splits and a PNG."""
    folder = tmp_path / "photos"
    for number in range(20):
        place = folder / ("train", "val", "test")[min(number // 8, 2)] / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(number).save(place / f"{number:02}.jpg", quality=90)
    picture(50).save(folder / "train" / "a" / "small.png")
    (folder / "train" / "b" / "broken.jpg").write_bytes(b"no image")
    shutil.copy(folder / "train" / "a" / "00.jpg", folder / "val" / "a" / "again.jpg")
    return folder


@pytest.fixture
def section(photos: Path) -> Callable[..., Any]:
    """The data section of these, with changes."""

    def make(**changes: Any) -> Any:
        values = {"source": "image_folder", "path": str(photos), "image_size": SIDE, "find_duplicates": "never"}
        values.update(changes)
        return _SECTIONS.validate_python(values)

    return make


@pytest.fixture(autouse=True)
def small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of three images, and a cache of one's own."""
    monkeypatch.setattr(preparing, "_SHARD_ROWS", 3)
    monkeypatch.setattr(preparing, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(section: Any, **options: Any) -> LoadedData:
    return load_data(section, task="image-classification", **options)


def pack(section: Any, folder: Path, *, side: int | None = None, overwrite: bool = False) -> None:
    prepare(load(section), section, folder, reading=CLASSES, side=side, overwrite=overwrite)


def stored_files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir() if path.suffix != ".lock"}


def check_same(prepared: LoadedData, source: LoadedData) -> None:
    """All but where images lie, and these byte for byte."""
    assert list(prepared.splits) == list(source.splits)
    for split, table in source.splits.items():
        for column in table.column_names:
            if column != "image":
                assert prepared.splits[split][column][:] == table[column][:], (split, column)
        for one, other in zip(RowDataset(prepared.splits[split]), RowDataset(table), strict=True):
            content = other["image"]["bytes"]
            assert one["image"]["bytes"] == (Path(other["image"]["path"]).read_bytes() if content is None else content)
        for content in ("image", "text") if "text" in table.column_names else ("image",):
            mine, theirs = (RowDataset(each.splits[split]).digests(content) for each in (prepared, source))
            assert np.array_equal(mine, theirs), "features that are stored of either are found by the other"
    assert prepared.label_names == source.label_names
    assert prepared.bad_examples == source.bad_examples
    assert prepared.duplicates == source.duplicates
    assert prepared.filter_steps == source.filter_steps


def test_rows_are_those_of_the_source(section, tmp_path):
    given = section(find_duplicates="near")
    pack(given, tmp_path / "packed")
    source = load(given)
    assert source.bad_examples and source.duplicates, "there is something to keep"
    prepared = load(section(find_duplicates="near", prepared=str(tmp_path / "packed")))
    check_same(prepared, source)
    assert prepared.fingerprint() == source.fingerprint()
    assert len(list((tmp_path / "packed").glob("train-*.images.arrow"))) == 3


def test_keys_that_leave_rows_alone_may_change(section, tmp_path):
    pack(section(), tmp_path / "packed")
    changes = {"image_size": 64, "augment": {"horizontal_flip": 0.5}, "exact": False}
    check_same(load(section(prepared=str(tmp_path / "packed"), **changes)), load(section()))


def test_some_splits_and_a_models_own_classes(section, tmp_path):
    exact = {"find_duplicates": "exact"}
    pack(section(**exact), tmp_path / "packed")
    options: dict[str, Any] = {"splits": ["test"], "label_names": ["b", "c", "a"]}
    prepared = load(section(**exact, prepared=str(tmp_path / "packed")), **options)
    source = load(section(**exact), **options)
    assert set(prepared.splits["test"]["label"][:]) == {0, 2}
    check_same(prepared, source)
    with pytest.raises(InputError, match="the model has no label 'a'"):
        load(section(**exact, prepared=str(tmp_path / "packed")), label_names=["x", "y"])


def test_captions_texts_and_columns_of_ones_own(caption_section, tmp_path):
    (tmp_path / "images").mkdir()
    lines = ["image,caption,label,text,site"]
    for number in range(9):
        picture(number).save(tmp_path / "images" / f"{number}.jpg")
        lines += [f"{number}.jpg,caption {number} {each},{number % 2},text {number},s{number}" for each in range(2)]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    values = {"source": "table", "path": str(tmp_path / "rows.csv"), "image_root": str(tmp_path / "images")}
    captioned, labelled = caption_section(**values), _SECTIONS.validate_python(values)
    kinds = [
        (captioned, "contrastive", Reading(label=False), {}),
        (
            labelled,
            "image-text-classification",
            Reading(text=True, extra_columns=("site",)),
            {"extra_columns": ["site"]},
        ),
    ]
    for number, (given, task, reading, options) in enumerate(kinds):
        folder = tmp_path / f"packed{number}"
        source = load_data(given, task=task, **options)
        prepare(source, given, folder, reading=reading, side=None, overwrite=False)
        found = given.model_copy(update={"prepared": str(folder)})
        check_same(load_data(found, task=task, **options), source)
    packed = captioned.model_copy(update={"prepared": str(tmp_path / "packed0")})
    captions = CaptionDataset(load_data(packed, task="image-captioning").splits["train"], "all")
    rows = [captions[number] for number in range(len(captions))]
    assert {row["caption"] for row in rows} == {text for row in rows for text in row["captions"]}
    other = labelled.model_copy(update={"prepared": str(tmp_path / "packed1")})
    with pytest.raises(InputError, match="without the column 'other'"):
        load_data(other, task="image-text-classification", extra_columns=["other"])
    with pytest.raises(InputError, match="was prepared for another task"):
        load_data(other, task="image-classification")


def test_a_blank_image_stays_blank(section, tmp_path):
    given = section(on_bad_image="blank")
    pack(given, tmp_path / "packed", side=SIDE)
    table = load(section(on_bad_image="blank", exact=False, prepared=str(tmp_path / "packed"))).splits["train"]
    (blank,) = [row for row in table if "broken" in row["id"]]
    assert blank["image"] == {"path": None, "bytes": None}


def test_scaled_images_stay_close(section, tmp_path):
    """A picture that is sized twice differs from one that is sized once by a few grey levels."""
    pack(section(exact=False), tmp_path / "packed", side=SIDE)
    found = load(section(exact=False, prepared=str(tmp_path / "packed"))).splits["train"]
    for mine, theirs in zip(found, load(section()).splits["train"], strict=True):
        small, large = decode_pixels(mine["image"]), decode_pixels(theirs["image"])
        assert min(small.shape[1:]) == SIDE < min(large.shape[1:])
        resized = [
            torch.nn.functional.interpolate(each[None].float(), (SIDE, SIDE), mode="bicubic", antialias=True)
            for each in (small, large)
        ]
        assert (resized[0] - resized[1]).abs().mean() < 3
    with pytest.raises(InputError, match="data.exact is true"):
        load(section(prepared=str(tmp_path / "packed")))
    with pytest.raises(InputError, match="scaled to 32 pixels, and 64 are needed"):
        load(section(exact=False, image_size=64, prepared=str(tmp_path / "packed")))
    crop = {"random_resized_crop": {"scale": [0.25, 1.0]}}
    with pytest.raises(InputError, match="scaled to 32 pixels, and 64 are needed"):
        load(section(exact=False, augment=crop, prepared=str(tmp_path / "packed")))


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


CHANGES = {
    "an image is another one": lambda photos: picture(70).save(photos / "train" / "a" / "02.jpg"),
    "an image is new": lambda photos: picture(70).save(photos / "train" / "a" / "new.jpg"),
    "an image is gone": lambda photos: (photos / "train" / "a" / "02.jpg").unlink(),
    "a class is new": lambda photos: shutil.copytree(photos / "train" / "b", photos / "train" / "c"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.slow
def test_a_changed_source_is_noticed(section, photos, tmp_path, change):
    folder = tmp_path / "packed"
    pack(section(), folder)
    CHANGES[change](photos)
    with pytest.raises(InputError, match="its source has changed since"):
        load(section(prepared=str(folder)))
    with pytest.raises(InputError, match="its source has changed since it was prepared; --overwrite makes it anew"):
        pack(section(), folder)
    pack(section(), folder, overwrite=True)
    check_same(load(section(prepared=str(folder))), load(section()))


def test_a_changed_table_is_noticed(tmp_path):
    picture(0).save(tmp_path / "0.jpg")
    table = tmp_path / "rows.csv"
    table.write_text("image,label\n" + "".join(f"0.jpg,{number % 2}\n" for number in range(20)))
    given = _SECTIONS.validate_python({"source": "table", "path": str(table)})
    pack(given, tmp_path / "packed")
    found = given.model_copy(update={"prepared": str(tmp_path / "packed")})
    (tmp_path / "predictions.csv").write_text("what others write beside it does not matter")
    assert load(found).num_rows("train") == 16
    with table.open("a") as stream:
        stream.write("0.jpg,1\n")
    with pytest.raises(InputError, match="its source has changed since"):
        load(found)


def test_a_source_that_is_elsewhere_is_not_missed(section, photos, tmp_path):
    pack(section(), tmp_path / "packed")
    source = load(section())
    prepared = section(prepared=str(tmp_path / "packed"))
    expected = source.splits["train"]["id"][:]
    photos.rename(tmp_path / "away")
    assert load(prepared).splits["train"]["id"][:] == expected


def test_another_recipe_is_refused_by_its_key(section, tmp_path):
    pack(section(), tmp_path / "packed")
    with pytest.raises(InputError, match=r"data.limit=null, not 4; `mmhf prepare RECIPE -o .* --overwrite`"):
        load(section(limit=4, prepared=str(tmp_path / "packed")))
    with pytest.raises(InputError, match="was prepared with another data.limit; --overwrite"):
        pack(section(limit=4), tmp_path / "packed")
    labels = [{"a": "x", "b": "y"}, {"b": "y", "a": "x"}]
    pack(section(labels=labels[0]), tmp_path / "named")
    with pytest.raises(InputError, match="data.labels"):
        load(section(labels=labels[1], prepared=str(tmp_path / "named")))


def test_a_kill_loses_one_file_and_the_next_run_goes_on(section, tmp_path, monkeypatch):
    folder = tmp_path / "packed"
    write, written = preparing._Packing._write_images, []

    def stop_at_fourth(self, table, rows, path, bar):
        written.append(path.name)
        if len(written) == 4:
            with preparing.whole_file(path) as temporary:
                temporary.write_bytes(b"half a fi")
                raise KeyboardInterrupt
        write(self, table, rows, path, bar)

    monkeypatch.setattr(preparing._Packing, "_write_images", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        pack(section(), folder)
    with pytest.raises(InputError, match="is cut short: 3 files of images, but no prepared.json; `mmhf prepare"):
        load(section(prepared=str(folder)))
    before = stored_files(folder)
    pack(section(), folder)
    after = stored_files(folder)
    assert written[3:5] == [written[3]] * 2, "the file that was lost is written again, and none before it"
    assert all(after[name] == before[name] for name in written[:3])
    check_same(load(section(prepared=str(folder))), load(section()))
    pack(section(), folder)
    assert stored_files(folder) == after, "what is finished is left alone"


def test_files_of_other_data_are_not_gone_on_with(section, tmp_path):
    folder = tmp_path / "packed"
    pack(section(), folder)
    (folder / "prepared.json").unlink()
    pack(section(limit=4), folder)
    check_same(load(section(limit=4, prepared=str(folder))), load(section(limit=4)))
    assert len(list(folder.glob("train-*.images.arrow"))) == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-00001.images.arrow", flip),
        ("train-00001.images.arrow", os.unlink),
        ("validation.rows.arrow", grow),
        ("validation.rows.arrow", os.unlink),
        ("prepared.json", flip),
        ("prepared.json", os.unlink),
    ],
)
@pytest.mark.slow
def test_damage_is_named_and_mended(section, tmp_path, name, damage):
    folder = tmp_path / "packed"
    pack(section(), folder)
    load(section(prepared=str(folder)))
    damage(folder / name)
    with pytest.raises(InputError, match=name) as refused:
        load(section(prepared=str(folder)))
    assert isinstance(refused.value, DamagedError) or damage is os.unlink
    pack(section(), folder)
    check_same(load(section(prepared=str(folder))), load(section()))


def test_a_folder_that_can_only_be_read(section, tmp_path, monkeypatch):
    folder = tmp_path / "packed"
    pack(section(), folder)
    before = sorted(os.listdir(folder))

    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise AssertionError(f"{path} is written")

    monkeypatch.setattr(preparing, "whole_file", refuse)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    check_same(load(section(prepared=str(folder))), load(section()))
    assert sorted(os.listdir(folder)) == before


def test_what_is_no_prepared_folder(section, tmp_path):
    with pytest.raises(InputError, match="no such folder: .*; `mmhf prepare RECIPE -o"):
        load(section(prepared=str(tmp_path / "nowhere")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    with pytest.raises(InputError, match="holds thesis.txt and no prepared data"):
        pack(section(), tmp_path / "mine")
    with pytest.raises(InputError, match=r"has no prepared.json"):
        load(section(prepared=str(tmp_path / "mine")))


def test_a_source_that_changes_meanwhile(section, photos, tmp_path):
    given = section()
    data = load(given)
    write = preparing._Packing._write_rows

    def write_and_change(self, split, shards):
        write(self, split, shards)
        picture(80).save(photos / "train" / "a" / "02.jpg")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing._Packing, "_write_rows", write_and_change)
        with pytest.raises(InputError, match="the source changed while it was prepared"):
            prepare(data, given, tmp_path / "packed", reading=CLASSES, side=None, overwrite=False)
    pack(section(), tmp_path / "packed")
    check_same(load(section(prepared=str(tmp_path / "packed"))), load(section()))


@pytest.mark.slow
def test_several_labels_a_row_take_the_places_that_a_model_has(tmp_path: Path) -> None:
    names = ["face", "animal", "food"]
    sets = {"names": names, "others": "ignore"}
    given = _SECTIONS.validate_python({"source": "sample", "image_size": SIDE, "limit": 12, "multi_label": sets})
    prepare(load(given), given, tmp_path / "packed", reading=CLASSES, side=None, overwrite=False)
    packed = given.model_copy(update={"prepared": str(tmp_path / "packed")})
    own, same = load(given), load(packed)
    assert same.label_names == names and same.fingerprint() == own.fingerprint()
    assert same.splits["train"]["labels"][:] == own.splits["train"]["labels"][:]
    served = load(packed, label_names=["food", "other", "face", "animal"])
    assert served.label_names == ["food", "other", "face", "animal"]
    for before, after in zip(own.splits["train"]["labels"], served.splits["train"]["labels"], strict=True):
        face, animal, food = before
        assert after == [food, 0, face, animal]


@pytest.mark.slow
def test_numbers_are_kept_and_may_have_another_name(tmp_path: Path) -> None:
    given = _SECTIONS.validate_python({"source": "sample", "image_size": SIDE, "limit": 12, "regression": {}})
    prepare(load(given), given, tmp_path / "packed", reading=CLASSES, side=None, overwrite=False)
    packed = given.model_copy(update={"prepared": str(tmp_path / "packed")})
    own, same = load(given), load(packed)
    assert same.label_names == ["words"] and same.fingerprint() == own.fingerprint()
    renamed = load(packed, label_names=["length"])
    assert renamed.label_names == ["length"]
    assert renamed.splits["train"]["numbers"][:] == own.splits["train"]["numbers"][:]
