"""Files that have not changed are not read again, whoever asks."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest

from mmhf.data import digests, seen_files
from mmhf.data.digests import digest_images, is_readable
from mmhf.data.table import ROW_FEATURES, ImageFiles

COUNT = 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(seen_files, "_SETTLED_AFTER", -1e9)


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Paths of the files that are read."""
    found: list[str] = []
    read = digests._image_digest

    def counted(image):
        found.append(image["path"])
        return read(image)

    monkeypatch.setattr(digests, "_image_digest", counted)
    return found


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / "images" / f"{number}.jpg" for number in range(COUNT)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        path.write_bytes(b"x" * 10 + bytes([number]))
    return paths


def table(paths) -> datasets.Dataset:
    columns = {
        "row": list(range(len(paths))),
        "id": [str(path) for path in paths],
        "image": [{"path": None if path is None else str(path), "bytes": None} for path in paths],
        "text": [""] * len(paths),
        "label": [0] * len(paths),
    }
    return datasets.Dataset.from_dict(columns, features=ROW_FEATURES)


def test_files_are_read_once(files, reads):
    first = digest_images(table(files), range(COUNT))
    assert len(reads) == COUNT
    assert np.array_equal(digest_images(table(files), range(COUNT)), first)
    assert np.array_equal(digest_images(table(files), range(1, COUNT, 3)), first[1::3])
    assert len(reads) == COUNT


def test_a_file_that_changed_is_read_again_also_if_size_and_time_stay(files, reads):
    first = digest_images(table(files), range(COUNT))
    times = files[3].stat()
    files[3].write_bytes(b"y" * 11)
    os.utime(files[3], ns=(times.st_atime_ns, times.st_mtime_ns))
    second = digest_images(table(files), range(COUNT))
    assert reads[COUNT:] == [str(files[3])]
    assert np.flatnonzero(first != second).tolist() == [3]


def test_a_file_of_just_now_is_not_taken_to_be_settled(files, reads, monkeypatch):
    monkeypatch.setattr(seen_files, "_SETTLED_AFTER", 60.0)
    for _ in range(2):
        digest_images(table(files), range(COUNT))
    assert len(reads) == 2 * COUNT


def test_what_is_missing_or_cannot_be_read_has_a_digest_that_says_so(files):
    files[1].unlink()
    found = digest_images(table([files[0], files[1], None]), range(3))
    assert is_readable(found).tolist() == [True, False, False]
    assert len({digest.tobytes() for digest in found}) == 3


def test_of_several_that_ask_at_once_one_reads(files, reads):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: digest_images(table(files), range(COUNT)), range(4)))
    assert all(np.array_equal(each, found[0]) for each in found)
    assert sorted(reads) == sorted(map(str, files))


def test_a_cache_that_cannot_be_written_is_named(files, reads, monkeypatch, tmp_path, caplog):
    (tmp_path / "in the way").write_text("")
    first = digest_images(table(files), range(COUNT))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "in the way")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert np.array_equal(digest_images(table(files), range(COUNT)), first)
    assert len(reads) == 3 * COUNT and "cannot be written" in caplog.text


def test_a_file_of_digests_does_not_grow_without_end(files, monkeypatch):
    monkeypatch.setattr(seen_files, "_MOST_RECORDS", COUNT + 5)
    digest_images(table(files[:20]), range(20))
    digest_images(table(files), range(COUNT))
    assert len(np.fromfile(seen_files.seen_path(), seen_files._RECORD)) == COUNT
    for path in files:
        path.write_bytes(path.read_bytes() + b"!")
    digest_images(table(files), range(COUNT))
    assert len(np.fromfile(seen_files.seen_path(), seen_files._RECORD)) == COUNT


def test_files_that_were_found_whole_are_not_opened_again(files, monkeypatch):
    opened: list[str] = []

    def looked_at(path):
        opened.append(str(path))
        return "cut off" if str(path) == str(files[5]) else None

    monkeypatch.setattr("mmhf.data.table.find_image_problem", looked_at)
    images = [{"path": path.name, "bytes": None} for path in files] + [{"path": "missing.jpg", "bytes": None}, None]

    def broken() -> list[int]:
        """A start: images are judged in two parts, and what was found is kept."""
        opened.clear()
        place = ImageFiles(files[0].parent)
        faults = [fault for part in (images[:9], images[9:]) for fault in place.find_faults(part, read=True)]
        place.keep_findings()
        return [number for number, fault in enumerate(faults) if fault is not None]

    assert broken() == [5, COUNT + 1]
    assert len(opened) == COUNT + 1
    assert broken() == [5, COUNT + 1]
    missing = str(files[0].parent / "missing.jpg")
    assert opened == [str(files[5]), missing], "only what was at fault"
    times = files[3].stat()
    files[3].write_bytes(b"y" * 11)
    os.utime(files[3], ns=(times.st_atime_ns, times.st_mtime_ns))
    broken()
    assert opened == [str(files[3]), str(files[5]), missing]
    monkeypatch.setattr(seen_files, "_SETTLED_AFTER", 60.0)
    broken()
    assert len(opened) == COUNT + 1, "what is new may still change"
    ImageFiles(files[0].parent).find_faults(images, read=False)
    assert len(opened) == COUNT + 1
