from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import pytest
from cloud_emulators import upload
from fsspec.implementations.memory import MemoryFileSystem
from torch.utils.data import DataLoader

from mmhf.data.collators import ImageTextCollator
from mmhf.data.datasets import RowDataset
from mmhf.data.images import BadImageError, decode_image
from mmhf.data.loading import LoadedData, load_data
from mmhf.data.modalities import names_no_image
from mmhf.errors import InputError, UnreachableError

_COLUMNS = {"image": "image", "text": "text", "label": "label"}
_ROWS = 12


@pytest.fixture
def folder(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """A table of twelve images below `imgs`."""
    folder = tmp_path / "v1"
    lines = ["image,text,label"]
    for number in range(_ROWS):
        path = folder / "imgs" / f"{number % 3}" / f"{number:02d} of 12.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(f"rgb({number * 20}, {number}, 0)", "PNG"))
        lines.append(f"imgs/{number % 3}/{path.name},case {number},{'ab'[number % 2]}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def memory(folder: Path) -> str:
    """The same in an object store of this process."""
    fs = fsspec.filesystem("memory")
    if fs.exists("/derm"):
        fs.rm("/derm", recursive=True)
    upload(folder, "memory://derm/v1")
    return "memory://derm/v1"


@pytest.fixture
def load(section: Callable[..., Any], tmp_path: Path) -> Callable[..., LoadedData]:
    def load(place: object, *, check_images: bool = True, **values: Any) -> LoadedData:
        cloud = {"cache_dir": str(tmp_path / "copies"), "retries": 0, **values.pop("cloud", {})}
        chosen = {"split": {"validation": 0.25, "test": 0.0, "seed": 1}, "columns": _COLUMNS, **values}
        return load_data(
            section(source="table", path=f"{place}/metadata.csv", cloud=cloud, **chosen), check_images=check_images
        )

    return load


Load = Callable[..., LoadedData]


def _colours(data: LoadedData) -> dict[str, list[tuple[str, Any]]]:
    return {
        split: [(row["text"], decode_image(row["image"]).getpixel((0, 0))) for row in table]
        for split, table in data.splits.items()
    }


def _reasons(data: LoadedData) -> dict[str, str]:
    return {f"{example.row}": example.reason for example in data.bad_examples}


def _pipe(url: str, content: bytes) -> None:
    fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    fs.pipe_file(path, content)


@pytest.mark.slow
def test_local_gs_and_s3_give_the_same_rows(folder: Path, load: Load, cloud_folders: list[str]) -> None:
    expected = load(folder)
    for url in cloud_folders:
        upload(folder, url)
        found = load(url)
        assert _colours(found) == _colours(expected)
        assert found.fingerprint() == expected.fingerprint()
        assert found.label_names == expected.label_names
    shutil.rmtree(folder)
    assert _colours(load(cloud_folders[0])) == _colours(load(cloud_folders[1]))


@pytest.mark.slow
def test_an_object_that_changes_under_us_is_a_bad_image(
    folder: Path, load: Load, cloud_folders: list[str], encode: Callable[..., bytes]
) -> None:
    for url in cloud_folders:
        upload(folder, url)
        data = load(url)
        _pipe(f"{url}/imgs/1/01 of 12.png", encode("rgb(20, 1, 1)", "PNG"))
        fs, path = fsspec.core.url_to_fs(f"{url}/imgs/2/02 of 12.png", use_listings_cache=False)
        fs.rm(path)
        reasons = {}
        for table in data.splits.values():
            for row in table:
                try:
                    decode_image(row["image"])
                except BadImageError as error:
                    reasons[row["text"]] = str(error)
        assert reasons == {
            "case 1": "the image file cannot be used: it has changed since the data was loaded",
            "case 2": "the image file cannot be used: it is not there any more",
        }


@pytest.mark.slow
def test_an_object_that_was_copied_before_it_changed_is_still_the_one_that_was_loaded(
    folder: Path, load: Load, cloud_folders: list[str], encode: Callable[..., bytes]
) -> None:
    upload(folder, cloud_folders[1])
    data = load(cloud_folders[1])
    before = _colours(data)
    _pipe(f"{cloud_folders[1]}/imgs/1/01 of 12.png", encode("rgb(20, 1, 1)", "PNG"))
    assert _colours(data) == before
    after = _colours(load(cloud_folders[1]))
    assert [new for split in after for new in after[split] if new not in before[split]] == [("case 1", (20, 1, 1))]


def test_missing_and_empty_images_are_found_by_one_listing(
    folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "imgs" / "0" / "03 of 12.png").unlink()
    (folder / "imgs" / "1" / "04 of 12.png").write_bytes(b"")
    expected = load(folder)
    upload(folder, "memory://derm/holes")
    calls: list[str] = []
    for name in ("find", "info", "cat_file"):
        original = getattr(MemoryFileSystem, name)

        def counted(fs: Any, path: str, *args: Any, _name: str = name, _call: Any = original, **options: Any) -> Any:
            calls.append(f"{_name} {path}")
            return _call(fs, path, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, name, counted)
    found = load("memory://derm/holes")
    assert _reasons(found) == _reasons(expected)
    assert set(_reasons(found)) == {"4", "5"}
    assert [call for call in calls if call.startswith("find")] == ["find /derm/holes/imgs"]
    assert not [call for call in calls if ".png" in call]


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "imgs/../../secret.png", "/etc/passwd", "s3://other/secret.png", "C:\\x.png", "a\\..\\..\\b"],
)
def test_no_path_in_a_table_leaves_the_folder(memory: str, load: Load, name: str) -> None:
    _pipe("memory://derm/secret.png", fsspec.filesystem("memory").cat_file("/derm/v1/imgs/0/00 of 12.png"))
    _pipe(f"{memory}/metadata.csv", f"image,text,label\n{name},t,a\nimgs/0/00 of 12.png,t,b".encode())
    with pytest.raises(InputError, match=r"metadata.csv, row 1: the image"):
        load(memory, split={"validation": 0.0, "test": 0.0})


def test_a_path_may_be_written_as_a_file_system_takes_it(memory: str, load: Load) -> None:
    _pipe(f"{memory}/metadata.csv", b"image,text,label\n./imgs//0/00 of 12.png,x,a\nimgs/./1/01 of 12.png,y,b")
    data = load(memory, split={"validation": 0.0, "test": 0.0})
    assert _colours(data) == {"train": [("x", (0, 0, 0)), ("y", (20, 1, 0))]}


def test_images_that_are_not_checked_are_found_missing_when_decoded(folder: Path, memory: str, load: Load) -> None:
    fsspec.filesystem("memory").rm("/derm/v1/imgs/0/00 of 12.png")
    data = load(memory, check_images=False)
    assert not data.bad_examples
    rows = [row for table in data.splits.values() for row in table if row["text"] == "case 0"]
    assert not names_no_image(rows[0]["image"])
    with pytest.raises(BadImageError, match="the image file is missing"):
        decode_image(rows[0]["image"])


def test_on_bad_image_blank_keeps_the_row(memory: str, load: Load) -> None:
    fsspec.filesystem("memory").rm("/derm/v1/imgs/0/00 of 12.png")
    data = load(memory, on_bad_image="blank")
    images = {row["text"]: row["image"] for table in data.splits.values() for row in table}
    assert len(images) == _ROWS
    assert [text for text, image in images.items() if names_no_image(image)] == ["case 0"]


def test_labels_and_texts_are_read_without_fetching(memory: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(memory)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", None)
    assert len(data.splits["train"]["label"][:]) == 9
    assert set(data.fingerprint()) == {"train", "validation"}


def test_a_cache_smaller_than_the_data_fetches_again_and_stays_within_its_bound(
    folder: Path, memory: str, load: Load, tmp_path: Path
) -> None:
    size = (folder / "imgs/0/00 of 12.png").stat().st_size
    data = load(memory, cloud={"max_bytes": 4 * size})
    expected = _colours(load(folder))
    for _ in range(3):
        assert _colours(data) == expected
    kept = [path.stat().st_size for path in (tmp_path / "copies").glob("??/*")]
    assert 0 < sum(kept) <= 4 * size


def _labels(loader: Any) -> list[int]:
    return [int(value) for batch in loader for value in batch["pixel_values"][:, 0, 0, 0]]


@pytest.mark.slow
def test_workers_fetch_for_themselves(folder: Path, load: Load, cloud_folders: list[str], processor: Any) -> None:
    upload(folder, cloud_folders[1])
    data = load(cloud_folders[1], split={"validation": 0.0, "test": 0.0})
    table = data.splits["train"]
    first = decode_image(table[0]["image"])  # so that this process has connections when it forks
    assert first.getpixel((0, 0)) == (0, 0, 0)
    loader = DataLoader(
        RowDataset(table),  # type: ignore[arg-type]
        batch_size=2,
        num_workers=2,
        collate_fn=ImageTextCollator(processor),
    )
    assert _labels(loader) == [number * 20 for number in range(_ROWS)]


def test_a_table_of_remote_images_can_be_pickled(memory: str, load: Load) -> None:
    table = load(memory).splits["train"]
    again = pickle.loads(pickle.dumps(table))
    assert [decode_image(row["image"]).getpixel((0, 0)) for row in again] == [
        decode_image(row["image"]).getpixel((0, 0)) for row in table
    ]


def _failing(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int = 1 << 30) -> tuple[list[str], list[float]]:
    """Let downloads fail this often; returns what was asked for, and the seconds between."""
    asked: list[str] = []
    slept: list[float] = []
    original = MemoryFileSystem.cat_file

    def cat_file(fs: Any, path: str, **options: Any) -> bytes:
        asked.append(path)
        if len(asked) <= times:
            raise error
        content: bytes = original(fs, path, **options)
        return content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr("mmhf.data.remote.files.time.sleep", slept.append)
    return asked, slept


def test_a_request_that_fails_is_tried_again_after_longer_and_longer(
    memory: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load(memory, cloud={"retries": 3}).splits["train"]
    asked, slept = _failing(monkeypatch, ConnectionResetError("reset"), times=3)
    decode_image(table[0]["image"])
    assert len(asked) == 4
    assert 0.5 <= slept[0] <= 1 <= slept[1] <= 2 <= slept[2] <= 4


def test_a_network_that_stays_away_stops_the_run(memory: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    table = load(memory, cloud={"retries": 1}).splits["train"]
    _failing(monkeypatch, ConnectionResetError("reset by peer"))
    with pytest.raises(UnreachableError, match=r"^cannot read memory://derm/v1/imgs/.*\.png: reset by peer$"):
        decode_image(table[0]["image"])


def test_what_is_not_allowed_is_not_tried_again(memory: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    table = load(memory, cloud={"retries": 5}).splits["train"]
    asked, _ = _failing(monkeypatch, PermissionError("Access Denied"))
    with pytest.raises(UnreachableError, match="^no permission to read memory://.*: Access Denied$"):
        decode_image(table[0]["image"])
    assert len(asked) == 1


@pytest.mark.parametrize("place", ["gs://no-such-bucket/v1", "s3://no-such-bucket/v1"])
def test_a_bucket_that_is_not_there_is_named(load: Load, cloud_folders: list[str], place: str) -> None:
    with pytest.raises(InputError, match=f"^{place}/metadata.csv: no such file"):
        load(place)


def test_a_bucket_without_credentials_is_named(
    load: Load, cloud_folders: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UnreachableError, match="^no permission to read s3://.*/metadata.csv: .*credentials"):
        load(f"{cloud_folders[1]}/elsewhere", cloud={"connections": 3})


def test_a_server_that_is_not_there_is_named(
    load: Load, cloud_folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UnreachableError, match="^cannot read s3://.*/metadata.csv: .*127.0.0.1:9"):
        load(f"{cloud_folders[1]}/elsewhere", cloud={"connections": 4})


def test_a_package_that_is_not_installed_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(url: str, **options: Any) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", not_installed)
    with pytest.raises(InputError, match=r"gs:// is not installed: pip install 'mmhf\[cloud\]'$"):
        load("gs://other-bucket/v1")


def test_a_chained_url_is_refused(load: Load) -> None:
    with pytest.raises(InputError, match="a URL of several parts"):
        load("zip://v1::s3://bucket/data.zip")


def test_a_cache_on_a_full_disk_stops_the_run(
    memory: str, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load(memory).splits["train"]
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("mmhf.data.remote.cache._write_file", Mock(side_effect=full))
    with pytest.raises(InputError, match=f"data.cloud.cache_dir: the disk of {tmp_path}/copies is full; free some"):
        decode_image(table[0]["image"])
