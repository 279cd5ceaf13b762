from __future__ import annotations

import io
import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmhf.data.images import decode_image
from mmhf.data.loading import LoadedData, load_data
from mmhf.data.sources import image_cache
from mmhf.errors import InputError

CLASSES = ("Apple___Black_rot", "Corn_(maize)___Cercospora leaf spot, train", "Tomato___test healthy", "葉___é")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_tree(folder: Path, encode: Callable[..., bytes], count: int = 20) -> Path:
    """PlantVillage's layout; every image has a colour of its own."""
    for kind, name in enumerate(CLASSES):
        place = folder / "raw" / "color" / name
        place.mkdir(parents=True)
        for number in range(count):
            content = encode(f"rgb({10 * number}, {60 * kind}, {100 if folder.name == 'tree' else 0})", "PNG")
            (place / f"{number:02} train test (copy), 1.JPG").write_bytes(content)
    (folder / "raw" / "color" / "README train.md").write_text("no image")
    (folder / "raw" / ".hidden.jpg").write_bytes(b"x")
    return folder


@pytest.fixture
def tree(tmp_path, encode) -> Path:
    return write_tree(tmp_path / "tree", encode)


def load(section: Callable[..., Any], path: Path | str, **values: Any) -> LoadedData:
    options = {key: values.pop(key) for key in ("wanted", "label_names", "check_images") if key in values}
    return load_data(
        section(source="image_folder", path=str(path), **{"find_duplicates": "never", **values}),
        task="image-classification",
        splits=options.pop("wanted", None),
        **options,
    )


def contents(data: LoadedData) -> dict[str, list[tuple[str, int, tuple[int, ...]]]]:
    """Split → file name, label and colour of each row."""
    return {
        split: [
            (os.path.basename(row["id"]), row["label"], decode_image(row["image"]).getpixel((0, 0))) for row in table
        ]
        for split, table in data.splits.items()
    }


def test_a_tree_is_cut_by_class(section, tree):
    data = load(section, tree)
    assert data.label_names == sorted(CLASSES)
    assert {split: len(table) for split, table in data.splits.items()} == {"train": 64, "validation": 8, "test": 8}
    for table in data.splits.values():
        assert sorted(table["label"][:]) == sorted(list(range(4)) * (len(table) // 4))
    rows = [row for table in data.splits.values() for row in table]
    assert sorted(row["row"] for row in rows) == list(range(1, 81))
    for row in rows:
        assert data.label_names[row["label"]] == row["id"].split("/")[2]
        assert row["text"] == ""
        assert row["image"] == {"path": str(tree / row["id"]), "bytes": None}


def test_fractions_and_seed(section, tree):
    cut = {"validation": 0.25, "test": 0.0}
    first, again = (load(section, tree, split=cut) for _ in range(2))
    other = load(section, tree, split={**cut, "seed": 1})
    assert first.num_rows("validation") == 20 and "test" not in first.splits
    assert first.splits["validation"]["id"][:] == again.splits["validation"]["id"][:]
    assert first.splits["validation"]["id"][:] != other.splits["validation"]["id"][:]


def test_wanted_splits_are_cut_as_all_are(section, tree):
    everything, test = load(section, tree), load(section, tree, wanted=["test"])
    assert set(test.splits) == {"test"} and test.label_names == everything.label_names
    assert test.splits["test"][:] == everything.splits["test"][:]
    with pytest.raises(InputError, match="no split 'test'; there is train"):
        load(section, tree, split={"validation": 0.0, "test": 0.0}, wanted=["test"])


@pytest.fixture
def split_tree(tmp_path, encode) -> Path:
    folder = tmp_path / "split"
    for split, count in (("train", 12), ("Val", 3)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                (folder / split / name / f"{number}.png").write_bytes(encode(f"rgb({number}, 0, 0)", "PNG"))
    return folder


def test_split_folders_are_used_as_they_are(section, split_tree):
    data = load(section, split_tree)
    assert {split: len(table) for split, table in data.splits.items()} == {"train": 24, "validation": 6}


def test_splits_without_a_folder_are_cut_from_train(section, split_tree):
    data = load(section, split_tree, split={"validation": 0.5, "test": 0.25})
    assert {split: len(table) for split, table in data.splits.items()} == {"train": 18, "validation": 6, "test": 6}
    assert all(name.startswith("Val/") for name in data.splits["validation"]["id"])
    assert all(name.startswith("train/") for name in data.splits["test"]["id"])


def test_split_folders_by_name(section, split_tree):
    (split_tree / "Val").rename(split_tree / "unseen")
    with pytest.raises(InputError, match="beside the split folders train there are unseen"):
        load(section, split_tree)
    data = load(section, split_tree, splits={"test": "unseen"})
    assert set(data.splits) == {"test"} and data.num_rows("test") == 6


def test_names_of_labels_and_their_order(section, split_tree):
    data = load(section, split_tree, labels={"b": "sick", "a": "well"})
    assert data.label_names == ["sick", "well"]
    assert all((row["label"] == 0) == ("/b/" in row["id"]) for row in data.splits["train"])
    with pytest.raises(InputError, match="unknown label 'b'"):
        load(section, split_tree, labels={"a": "well", "c": "sick"})


def test_a_models_labels(section, split_tree):
    assert load(section, split_tree, label_names=["c", "b", "a"]).splits["train"]["label"][0] == 2
    with pytest.raises(InputError, match="the model has no label 'a'"):
        load(section, split_tree, label_names=["b", "c"])


def test_ignored_files_are_counted(section, tree, caplog):
    (tree / "raw" / "color" / "overview.png").write_bytes(b"x")
    load(section, tree)
    assert "ignored files: 1 hidden, 1 not images, 1 outside class folders" in caplog.text


def test_empty_classes_are_refused_or_named(section, tree, caplog):
    (tree / "raw" / "color" / "Zucchini").mkdir()
    with pytest.raises(InputError, match="class folders without images: raw/color/Zucchini; .*on_bad_row=skip"):
        load(section, tree)
    data = load(section, tree, on_bad_row="skip")
    assert "Zucchini" not in data.label_names and "raw/color/Zucchini" in caplog.text


def test_broken_images_are_listed(section, tree):
    name = f"raw/color/{CLASSES[0]}/03 train test (copy), 1.JPG"
    (tree / name).write_bytes(b"<html>")
    data = load(section, tree)
    [example] = data.bad_examples
    assert example.id == name and "not an image" in example.reason
    assert sum(map(len, data.splits.values())) == 79


def test_links_may_not_leave_the_folder(section, tree, tmp_path, encode):
    place = tree / "raw" / "color"
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "s.png").write_bytes(encode("red", "PNG"))
    (place / CLASSES[0] / "link.png").symlink_to(secret / "s.png")
    with pytest.raises(InputError, match="link out of the data folder.*link.png"):
        load(section, tree)
    assert sum(map(len, load(section, tree, on_bad_row="skip").splits.values())) == 80
    (place / CLASSES[0] / "link.png").unlink()
    (place / "Linked").symlink_to(secret)
    with pytest.raises(InputError, match="the folder raw/color/Linked is a link out of"):
        load(section, tree)
    assert len(load(section, tree, on_bad_row="skip").label_names) == 4


def test_links_inside_are_followed_and_circles_refused(section, tree):
    place = tree / "raw" / "color"
    (place / "Linked").symlink_to(place / CLASSES[0])
    assert load(section, tree).label_names == sorted([*CLASSES, "Linked"])
    (place / CLASSES[1] / "up").symlink_to(tree / "raw")
    with pytest.raises(InputError, match="up is a link to a folder that it lies in"):
        load(section, tree)


@pytest.mark.parametrize("name", ["../tree", "/", "nowhere"])
def test_the_folder_key_stays_inside(section, tree, name):
    with pytest.raises(InputError, match="data.folder"):
        load(section, tree, folder=name)


@pytest.mark.parametrize(("name", "message"), [("nowhere", "no such folder"), ("a.txt", "neither a folder nor")])
def test_a_path_that_is_nothing(section, tmp_path, name, message):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=message):
        load(section, tmp_path / name)


def test_impossible_settings(section, tree):
    with pytest.raises(ValueError, match="group_by"):
        section(source="image_folder", path=str(tree), split={"group_by": "patient"})
    with pytest.raises(ValueError, match="on_duplicate"):
        section(source="image_folder", path="x", find_duplicates="never", on_duplicate="skip_across_splits")
    with pytest.raises(InputError, match="'image-text-classification' cannot be loaded"):
        load_data(section(source="image_folder", path=str(tree)))


def pack(tree: Path, kind: str) -> Path:
    if kind == ".zip":  # in an order that no folder has
        with zipfile.ZipFile(f"{tree}.zip", "w") as archive:
            for path in sorted(tree.rglob("*"), reverse=True):
                archive.write(path, path.relative_to(tree.parent))
        return Path(f"{tree}.zip")
    formats = {".tar": "tar", ".tar.gz": "gztar", ".tar.xz": "xztar"}
    return Path(shutil.make_archive(str(tree), formats[kind], tree.parent, tree.name))


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.slow
def test_an_archive_is_as_its_folder(section, tree, kind, monkeypatch):
    archive = pack(tree, kind)
    assert archive.name == f"tree{kind}"
    expected = load(section, tree)
    data = load(section, archive)
    assert contents(data) == contents(expected) and data.label_names == expected.label_names
    assert data.splits["train"][0]["image"]["path"] is None
    assert contents(load(section, archive, folder="raw/color")) == contents(expected)
    # A second time nothing is read from the archive but its fingerprint.
    monkeypatch.setattr(image_cache, "_archive_members", None)
    assert load(section, archive).fingerprint() == data.fingerprint()


@pytest.mark.parametrize("name", ["images.arrow", "listing.json"])
def test_a_damaged_copy_of_an_archive_is_made_anew(section, tree, name, caplog):
    archive = pack(tree, ".zip")
    expected = contents(load(section, archive))
    (file,) = Path(datasets.config.HF_DATASETS_CACHE).glob(f"mmhf_images/*/{name}")
    content = bytearray(file.read_bytes())
    for damaged in (content[: len(content) // 2], content[:-30] + bytes([content[-30] ^ 1]) + content[-29:], None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert contents(load(section, archive)) == expected
        assert name in caplog.text and "its images are copied anew" in caplog.text
        caplog.clear()


def test_an_archive_that_changed_is_read_anew(section, tree, encode):
    archive = pack(tree, ".zip")
    before = load(section, archive).fingerprint()
    stamp = archive.stat()
    (tree / "raw" / "color" / CLASSES[0] / "new.jpg").write_bytes(encode())
    pack(tree, ".zip")
    os.utime(archive, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert load(section, archive).fingerprint() != before


def test_only_the_wanted_folder_of_an_archive_is_copied(section, tree):
    shutil.copytree(tree / "raw" / "color", tree / "raw" / "grayscale")
    archive = pack(tree, ".tar")
    with pytest.raises(InputError, match="raw/color has folders with images.*data.folder"):
        load(section, archive)
    assert sum(map(len, load(section, archive, folder="raw/color").splits.values())) == 80
    copied = image_cache.cache_archive(archive, folder="raw/grayscale")
    assert len(copied.table) == 80 and all("grayscale" in name for name in copied.listing.images)


def test_names_in_an_archive_are_only_names(section, tmp_path, encode, caplog):
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as file:
        for name in ("../../out/a.png", "/etc/a.png", "a/1.png", "b/1.png", "b/1.png"):
            info = tarfile.TarInfo(name)
            content = encode("red" if name.startswith("a") else "blue", "PNG")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("a/2.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    data = load(section, archive, split={"validation": 0.0, "test": 0.0})
    assert data.splits["train"]["id"][:] == ["a/1.png", "b/1.png"]
    assert "1 links" in caplog.text and "2 outside the archive" in caplog.text


def test_backslashes_in_a_zip(section, tmp_path, encode):
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as file:
        for name in ("a\\1.png", "b\\1.png"):
            file.writestr(name, encode("red", "PNG"))
    assert load(section, tmp_path / "windows.zip", split={"validation": 0.0, "test": 0.0}).label_names == ["a", "b"]


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_damaged_archives(section, tree, kind):
    archive = pack(tree, kind)
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"tree{kind} is damaged"):
        load(section, archive)
    archive.write_bytes(b"no archive at all")
    with pytest.raises(InputError, match=f"tree{kind} is damaged or no archive"):
        load(section, archive)
    assert not list((Path(datasets.config.HF_DATASETS_CACHE) / "mmhf_images").glob("*/images.arrow"))


def test_an_oversized_member_is_not_read(section, tree, monkeypatch):
    monkeypatch.setattr(image_cache, "MAX_IMAGE_BYTES", 50)
    for kind in (".zip", ".tar"):
        with pytest.raises(InputError, match="more than 50"):
            load(section, pack(tree, kind))


@pytest.fixture
def memory(tree) -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    fs.put(str(tree), "/bucket/tree", recursive=True)
    yield "memory://bucket/tree"
    fs.rm("/bucket", recursive=True)


def test_a_remote_folder_is_as_a_local_one(section, tree, memory, monkeypatch):
    expected = contents(load(section, tree))
    assert contents(load(section, memory)) == expected
    monkeypatch.setattr(MemoryFileSystem, "cat_file", None)  # each is fetched once
    assert contents(load(section, memory)) == expected
    assert contents(load(section, memory, folder="raw/color")) == expected
    with pytest.raises(InputError, match="data.folder: memory://bucket/tree has no folder 'raw/colour'"):
        load(section, memory, folder="raw/colour")
    with pytest.raises(InputError, match="data.folder: the path leaves the data folder"):
        load(section, memory, folder="../tree")


def test_a_remote_file_that_changed_is_fetched_anew(section, memory, encode):
    before = contents(load(section, memory))
    fs = fsspec.filesystem("memory")
    fs.pipe(f"/bucket/tree/raw/color/{CLASSES[0]}/00 train test (copy), 1.JPG", encode("white", "PNG"))
    after = contents(load(section, memory))
    changed = [
        (old, new) for split in before for old, new in zip(before[split], after[split], strict=True) if old != new
    ]
    assert [(old[0], new[2]) for old, new in changed] == [("00 train test (copy), 1.JPG", (255, 255, 255))]


def test_a_remote_archive(section, tree, memory):
    fsspec.filesystem("memory").put(str(pack(tree, ".tar.gz")), "/bucket/tree.tar.gz")
    assert contents(load(section, "memory://bucket/tree.tar.gz")) == contents(load(section, tree))
    fsspec.filesystem("memory").pipe("/bucket/broken.zip", b"nothing of the kind")
    with pytest.raises(InputError, match="^data.path: memory://bucket/broken.zip is damaged"):
        load(section, "memory://bucket/broken.zip")
    with pytest.raises(InputError, match="data.path: no such file: memory://bucket/other.zip"):
        load(section, "memory://bucket/other.zip")
    with pytest.raises(InputError, match="data.path: nothing at memory://bucket/other"):
        load(section, "memory://bucket/other")
    with pytest.raises(InputError, match="nonsense://a: Protocol not known"):
        load(section, "nonsense://a")


def test_a_file_url(section, tree):
    assert contents(load(section, f"file://{tree}")) == contents(load(section, tree))


file_names = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="/"), min_size=1, max_size=20
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(file_names.filter(lambda name: not name.startswith(".")), min_size=2, max_size=4, unique=True))
@pytest.mark.slow
def test_any_class_name_survives_folder_and_archive(section, encode, tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names") / "tree"
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        (folder / name / "train.jpg").write_bytes(encode(f"rgb({number * 50}, 0, 0)"))
    whole = {"split": {"validation": 0.0, "test": 0.0}}
    data = load(section, folder, **whole)
    assert len(data.splits["train"]) == len(names)
    assert contents(load(section, pack(folder, ".tar"), **whole)) == contents(data)
