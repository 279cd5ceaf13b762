"""Fetches the parts of a public data set into its folder, and compares what is there with what is known of them."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import get_session

from mmhf.data.images import find_name_escape
from mmhf.data.public_data import Part
from mmhf.data.seen_files import one_at_a_time
from mmhf.data.sources.image_tree import IMAGE_SUFFIXES
from mmhf.errors import InputError, UnreachableError
from mmhf.files import whole_file, whole_folder
from mmhf.parallel import map_in_threads

logger = logging.getLogger(__name__)

# Of the client that huggingface_hub uses: httpx, httpx2 from its version 2.4 on.
_NETWORK_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], OSError)
_LARGEST_CELL = 1 << 24
_SHOWN = 3


def fetch_part(part: Part, folder: Path) -> None:
    """Fetch what a program can fetch; what was fetched in part goes on where it stopped.

    Args:
        part ([`Part`]): What is not there yet.
        folder (`Path`): The data set's.

    Raises:
        UnreachableError: Its address does not answer, or refuses.
        InputError: The archive is damaged, or does not hold the part.
    """
    target = folder / part.path
    download = folder / f".{PurePosixPath(urlsplit(part.address).path).name}.fetched"
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(download):
        if target.exists():  # another process was faster
            return
        _download(part.address, download)
        if part.member is None:
            os.replace(download, target)
            return
        try:
            with zipfile.ZipFile(download) as archive:
                _unpack(archive, part.member, target)
        except (zipfile.BadZipFile, EOFError) as error:
            download.unlink()
            raise InputError(
                f"{part.address}: is a damaged archive ({error}); start again to fetch it anew"
            ) from error
        download.unlink()


def differences(part: Part, folder: Path) -> list[str]:
    """What is there compared with what is known, one text for each difference; none where they agree.

    Args:
        part ([`Part`]): A part that is there.
        folder (`Path`): The data set's.

    Raises:
        InputError: A file cannot be read.
    """
    target = folder / part.path
    found = []
    if part.rows is not None:
        found += _differing(_count_rows(target), part.rows, "rows")
    if part.images is not None:
        images = list(_image_files(target))
        found += _differing(len(images), part.images, "images")
        if part.classes is not None:
            found += _differing(len({path.parent for path in images}), part.classes, "folders with images")
        if part.is_named_by_md5:
            found += _misnamed(images)
    return found


def _download(address: str, path: Path) -> None:
    try:
        answer = get_session().head(address, follow_redirects=True)
        answer.raise_for_status()
        size = int(answer.headers.get("Content-Length", 0)) or None
        may_go_on = answer.headers.get("Accept-Ranges") == "bytes" and size is not None
        done = path.stat().st_size if path.exists() and may_go_on else 0
        free = shutil.disk_usage(path.parent).free
        if size is not None and size - done > free:
            raise InputError(f"{path.parent}: {free / 1e9:.1f} GB are free, and {address} has {size / 1e9:.1f} GB")
        if done and done == size:
            return
        with path.open("ab" if 0 < done < (size or 0) else "wb") as file:
            http_get(address, file, resume_size=file.tell(), expected_size=size, displayed_filename=path.name[1:-8])
    except _NETWORK_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnreachableError(f"{address}: cannot be fetched ({reason}); start again to go on") from error


def _unpack(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    """Take a file, or all files below a folder, out of an archive."""
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if member in names:
        with whole_file(target) as temporary, archive.open(member) as source, temporary.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        return
    inside = {name: name.removeprefix(f"{member}/") for name in names if name.startswith(f"{member}/")}
    if not inside:
        raise InputError(f"{archive.filename}: holds no {member}; its makers may have changed it")
    if escape := next((reason for name in inside.values() if (reason := find_name_escape(name))), None):
        raise InputError(f"{archive.filename}: {escape}")
    with whole_folder(target) as folder:
        for name, below in inside.items():
            path = folder / below
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def _count_rows(path: Path) -> int:
    """Rows of a table, or images of Karpathy's JSON."""
    try:
        if path.suffix == ".json":
            return len(json.loads(path.read_text(encoding="utf-8"))["images"])
        csv.field_size_limit(_LARGEST_CELL)
        with path.open(encoding="utf-8", newline="") as file:
            return sum(1 for row in csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",") if row) - 1
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it and fetch it again") from error


def _image_files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def _differing(found: int, known: int, what: str) -> list[str]:
    return [] if found == known else [f"{found:,} {what}; {known:,} are known"]


def _misnamed(images: list[Path]) -> list[str]:
    """Which images are not called by their MD5."""

    def differs(path: Path) -> bool:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != path.stem

    wrong = [path.name for path, differing in zip(images, map_in_threads(differs, images), strict=True) if differing]
    if not wrong:
        return []
    named = ", ".join(sorted(wrong)[:_SHOWN]) + (", …" if len(wrong) > _SHOWN else "")
    return [f"{len(wrong):,} images are not what their names say, their MD5: {named}"]
