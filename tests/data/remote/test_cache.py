from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from mmhf.data.remote import cache as cache_module
from mmhf.data.remote.cache import FileCache
from mmhf.errors import InputError


def _key(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def _size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("??/*"))


def _use(cache: FileCache, name: object, size: int, *, at: int) -> None:
    """Read a copy, as if it were this many seconds after 2001."""
    assert cache.read(_key(name), size) is not None
    path = next(Path(cache.folder).glob(f"*/{_key(name)}"))
    os.utime(path, (1e9 + at, 1e9 + at))


def test_what_was_written_is_read_and_what_was_not_is_absent(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 1000)
    assert cache.read(_key("a"), 5) is None
    cache.write(_key("a"), b"12345")
    assert cache.read(_key("a"), 5) == b"12345"
    assert cache.has(_key("a")) and not cache.has(_key("b"))


def test_a_copy_of_the_wrong_size_is_replaced(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)
    cache.write(_key("a"), b"123")
    assert cache.read(_key("a"), 5) is None
    cache.write(_key("a"), b"12345")
    assert cache.read(_key("a"), 5) == b"12345"
    assert (tmp_path / ".total").read_text() == "5\n"


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)
    for number in range(10):
        cache.write(_key(number), bytes(100))
        _use(cache, number, 100, at=number)
    _use(cache, 0, 100, at=20)
    cache.write(_key("new"), bytes(100))
    assert [number for number in range(10) if not cache.has(_key(number))] == [1, 2]
    assert cache.has(_key("new"))
    assert _size_on_disk(tmp_path) == 900


def test_reading_counts_as_use(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)
    cache.write(_key("a"), b"12345")
    path = next(tmp_path.glob(f"*/{_key('a')}"))
    os.utime(path, (1e9, 1e9))
    cache.read(_key("a"), 5)
    assert path.stat().st_mtime > time.time() - 60


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 100)
    cache.write(_key("small"), bytes(80))
    cache.write(_key("large"), bytes(101))
    assert cache.has(_key("small")) and not cache.has(_key("large"))


def _hammer(folder: Path, seed: int) -> int:
    """Read and write copies of known content; returns how many were wrong."""
    cache = FileCache(folder, 20_000)
    draw = random.Random(seed)
    wrong = 0
    for _ in range(300):
        name = draw.randrange(100)
        expected = bytes([name]) * (300 + name)
        content = cache.read(_key(name), len(expected))
        if content is None:
            cache.write(_key(name), expected)
            wrong += _size_on_disk_now(folder) > 20_000
        else:
            wrong += content != expected
    return wrong


def _size_on_disk_now(folder: Path) -> int:
    total = 0
    with FileCache(folder, 20_000)._locked():  # no rename is under way
        for path in folder.glob("??/[!.]*"):
            total += path.stat().st_size
    return total


@pytest.mark.slow
def test_processes_share_it_within_its_bound(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.starmap(_hammer, [(tmp_path, seed) for seed in range(3)]) == [0, 0, 0]
    assert int((tmp_path / ".total").read_text()) == _size_on_disk(tmp_path) <= 20_000
    assert not list(tmp_path.glob("*/.new-*"))


@pytest.mark.parametrize("left", ["", "12", None])
def test_a_lost_total_is_counted_again(tmp_path: Path, left: str | None) -> None:
    cache = FileCache(tmp_path, 1000)
    cache.write(_key("a"), bytes(700))
    (tmp_path / ".total").unlink() if left is None else (tmp_path / ".total").write_text(left)
    cache.write(_key("b"), bytes(100))
    assert (tmp_path / ".total").read_text() == "800\n"


def test_unfinished_files_of_killed_processes_go_in_the_end(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)
    cache.write(_key("a"), bytes(900))
    folder = next(tmp_path.glob("??"))
    for name, age in (("old", 7200), ("young", 10)):
        (folder / f".new-{name}").write_bytes(b"half")
        os.utime(folder / f".new-{name}", (time.time() - age,) * 2)
    cache.write(_key("b"), bytes(900))
    assert [path.name for path in tmp_path.glob("*/.new-*")] == [".new-young"]


def _full_disk(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    write = cache_module._write_file
    calls = iter(range(1000))

    def fail(path: str, content: bytes) -> None:
        if next(calls) < times:
            Path(path).write_bytes(content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        write(path, content)

    monkeypatch.setattr(cache_module, "_write_file", fail)


def test_on_a_full_disk_older_copies_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FileCache(tmp_path, 10_000)
    for number in range(10):
        cache.write(_key(number), bytes(100))
        _use(cache, number, 100, at=number)
    _full_disk(monkeypatch, times=1)
    cache.write(_key("new"), bytes(150))
    assert cache.read(_key("new"), 150) == bytes(150)
    assert [number for number in range(10) if not cache.has(_key(number))] == [0, 1]
    assert (tmp_path / ".total").read_text() == f"{_size_on_disk(tmp_path)}\n" == "950\n"


def test_a_disk_that_stays_full_is_an_error_that_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FileCache(tmp_path, 10_000)
    _full_disk(monkeypatch, times=1)
    with pytest.raises(InputError, match=f"data.cloud.cache_dir: the disk of {tmp_path} is full"):
        cache.write(_key("new"), bytes(150))
    assert not list(tmp_path.glob("??/*"))


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = FileCache(tmp_path / "file" / "cache", 1000)
    assert cache.read(_key("a"), 1) is None
    with pytest.raises(InputError, match="data.cloud.cache_dir: cannot write to .*file/cache: Not a directory"):
        cache.write(_key("a"), b"1")
