"""Images in archives, on disk and behind URLs, copied once into a memory-mapped file of the data set cache."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import logging
import lzma
import posixpath
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import datasets
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock

from mmhf.damage import find_damage, mark_complete
from mmhf.data.images import MAX_IMAGE_BYTES
from mmhf.data.remote.paths import RemotePath
from mmhf.data.sources.image_tree import Listing
from mmhf.errors import InputError
from mmhf.files import file_sha256, whole_folder

logger = logging.getLogger(__name__)

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_FEATURES = datasets.Features({"path": datasets.Value("string"), "image": datasets.Image(decode=False)})
_FORMAT = 1
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression that this Python cannot undo
)


class _Member(NamedTuple):
    path: str
    kind: str
    """`file`, `folder`, or why it is not looked at."""
    read: Callable[[], bytes]


class CachedImages(NamedTuple):
    """The images of an archive."""

    table: datasets.Dataset
    """`image`, in the order of `listing.images`; memory-mapped."""
    listing: Listing


def is_archive(path: str) -> bool:
    """Whether a path or URL ends as archives do."""
    return (urlsplit(path).path if "://" in path else path).lower().endswith(ARCHIVE_SUFFIXES)


def cache_archive(path: str | Path, *, folder: str | None = None) -> CachedImages:
    """Read the images of a zip or tar file, from the cache when the file is as it was.

    Nothing is unpacked into files: a member's name is a name and no more. Links in an archive are ignored.

    Args:
        path (`str` or `Path`):
            The archive.
        folder (`str`, *optional*):
            The folder in it to read; folders that wrap all others may be left out.

    Returns:
        `CachedImages`: what is in it.

    Raises:
        InputError: it is no archive, damaged, or encrypted.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"data.path: no such file: {path}")
    key = _key("archive", folder, file_sha256(path))
    with _reading(str(path)):
        return _cached(key, str(path), lambda: _archive_members(path, folder))


def cache_remote_archive(path: RemotePath, *, folder: str | None = None) -> CachedImages:
    """Read the images of an archive behind a URL, from the cache when it is as it was.

    Args:
        path (`RemotePath`):
            The archive.
        folder (`str`, *optional*):
            The folder in it to read.

    Returns:
        `CachedImages`: what is in it.

    Raises:
        InputError: nothing is there, or it is damaged.
        UnreachableError: the machine behind the URL cannot be reached.
    """
    file = path.files.find(path.inside)
    if file is None:
        raise InputError(f"data.path: no such file: {path}")
    key = _key("remote archive", folder, str(path), file.size, file.version)
    with _reading(str(path)):
        return _cached(key, str(path), lambda: _downloaded_members(path, folder))


@contextmanager
def _reading(archive: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the beginning of the file
            raise
        raise InputError(f"data.path: {archive} is damaged or no archive: {error.strerror}") from error
    except _DAMAGED as error:
        raise InputError(f"data.path: {archive} is damaged or no archive: {error}") from error


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, *parts]).encode()).hexdigest()


def _cached(key: str, origin: str, members: Callable[[], Iterable[_Member]]) -> CachedImages:
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "mmhf_images" / key
    if not _is_whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # another process may be copying the same images
            if not _is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                _fill(folder, origin, members())
    facts = json.loads((folder / "listing.json").read_text(encoding="utf-8"))
    table = datasets.Dataset.from_file(str(folder / "images.arrow"))
    paths: list[str] = table.select_columns(["path"])[:]["path"]
    # An archive that was appended to can hold a name twice; the last one counts, as when it is unpacked.
    last = {path: row for row, path in enumerate(paths)}
    images = table.select_columns(["image"])
    if len(last) < len(paths):
        images = images.select(list(last.values()))
    return CachedImages(images, Listing(list(last), set(facts["folders"]), Counter(facts["ignored"])))


def _is_whole(folder: Path) -> bool:
    """Whether a folder of images is there, and as it was written."""
    if not folder.exists():
        return False
    if (damage := find_damage(folder)) is not None:
        logger.warning("%s: %s; its images are copied anew", folder, damage)
    return damage is None


def _fill(folder: Path, origin: str, members: Iterable[_Member]) -> None:
    with whole_folder(folder) as temporary:
        listing = Listing()
        writer = ArrowWriter(path=str(temporary / "images.arrow"), features=_FEATURES, writer_batch_size=100)
        for member in members:
            if member.kind == "folder":
                listing.folders.add(member.path)
            elif member.kind != "file":
                listing.ignored[member.kind] += 1
            elif listing.takes(member.path):
                writer.write({"path": member.path, "image": {"path": None, "bytes": member.read()}})
        num_images, size = writer.finalize()
        facts = {"origin": origin, "folders": sorted(listing.folders), "ignored": listing.ignored}
        (temporary / "listing.json").write_text(json.dumps(facts), encoding="utf-8")
        mark_complete(temporary)
    logger.info("%s: copied %d images (%.0f MB) to %s", origin, num_images, size / 1e6, folder)


def _archive_members(path: Path, folder: str | None) -> Iterator[_Member]:
    read = _zip_members if zipfile.is_zipfile(path) else _tar_members
    prefix = f"{posixpath.normpath(folder)}/" if folder else ""
    for member in read(path):
        name = posixpath.normpath(member.path)
        if name.startswith("/") or name.split("/")[0] == "..":
            yield member._replace(kind="outside the archive")
        elif f"/{prefix}" in f"/{name}/":
            yield member._replace(path=name)


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = "folder" if info.is_dir() else "links" if stat.S_ISLNK(info.external_attr >> 16) else "file"
            # Some Windows programs write backslashes against the standard.
            name = info.filename.replace("\\", "/")
            yield _Member(name, kind, partial(_read_zip, archive, info))


def _read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.flag_bits & 1:
        raise InputError(f"data.path: {info.filename} in the archive is encrypted")
    _check_size(info.filename, info.file_size)
    return archive.read(info)


def _tar_members(path: Path) -> Iterator[_Member]:
    with tarfile.open(path, "r:*") as archive:
        for info in archive:
            kind = "folder" if info.isdir() else "file" if info.isfile() else "links"
            yield _Member(info.name, kind, partial(_read_tar, archive, info))


def _read_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    _check_size(info.name, info.size)
    file = archive.extractfile(info)
    assert file is not None  # a regular file
    return file.read()


def _check_size(name: str, size: int) -> None:
    if size > MAX_IMAGE_BYTES:
        raise InputError(f"data.path: {name} in the archive has {size} bytes, more than {MAX_IMAGE_BYTES}")


def _downloaded_members(path: RemotePath, folder: str | None) -> Iterator[_Member]:
    with tempfile.TemporaryDirectory(prefix="mmhf-") as temporary:
        local = Path(temporary) / path.name
        path.files.copy(path.inside, local)
        yield from _archive_members(local, folder)
