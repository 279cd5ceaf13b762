"""The file `complete` of a folder: all its files were written to the end, and with which bytes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from mmhf.errors import DamagedError, InputError
from mmhf.files import METRICS_FILE, PLOTS_FOLDER, RECIPE_FILE, RELEASE_FILE, read_json_object, write_json

logger = logging.getLogger(__name__)

COMPLETE_FILE = "complete"
_MODEL_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".py")
_BLOCK = 2**20
_LARGE = 2**24
"""Bytes from which a file is read once in a process, as long as it looks unchanged."""


def content_hash(path: str | Path) -> str:
    """The xxh3 of a file. It finds damage, quickly; it keeps nobody from forging a file."""
    status = Path(path).stat()
    if status.st_size < _LARGE:
        return xxhash.xxh3_128_hexdigest(Path(path).read_bytes())
    return _hash_of_large(str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=256)
def _hash_of_large(path: str, *state: int) -> str:
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def mark_complete(folder: Path, is_wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Note size and hash of a folder's files in its `complete`.

    Args:
        folder (`Path`): The folder.
        is_wanted (`Callable`): Chooses files by their names, such as `plots/roc.png`; absent: all.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    names = sorted(name for name in paths if name != COMPLETE_FILE and is_wanted(name))
    noted = {name: [paths[name].stat().st_size, content_hash(paths[name])] for name in names}
    write_json(folder / COMPLETE_FILE, noted)


def find_damage(folder: Path, is_wanted: Callable[[str], bool] = lambda name: True) -> str | None:
    """What is missing from a folder or is not as it was written, such as `optimizer.pt is missing`; None: nothing.

    Of a folder that notes nothing, as earlier versions wrote it, nothing is known; of a run this is said.

    Args:
        folder (`Path`): A checkpoint, a run folder or a release.
        is_wanted (`Callable`): Chooses files by their names; absent: all that are noted.
    """
    marker = folder / (COMPLETE_FILE if (folder / COMPLETE_FILE).is_file() else RELEASE_FILE)
    if not marker.is_file() or marker.stat().st_size == 0:
        if marker.is_file() or (folder / METRICS_FILE).is_file():
            _say_once(folder / COMPLETE_FILE, "is empty" if marker.is_file() else "is missing")
        return None
    try:
        noted = read_json_object(marker)
        if marker.name == RELEASE_FILE:
            noted = {name: [noted["sizes"][name], digest] for name, digest in noted.get("checksums", {}).items()}
        return _difference(folder, {name: noted[name] for name in noted if is_wanted(name)})
    except (InputError, AttributeError, KeyError, TypeError, ValueError):
        return f"{marker.name} is damaged"


@functools.cache
def _say_once(marker: Path, what: str) -> None:
    logger.warning("%s: %s, so damage to the files beside it cannot be noticed", marker, what)


def _difference(folder: Path, noted: Mapping[str, Sequence[Any]]) -> str | None:
    for name, (size, digest) in noted.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, it was written with {size}"
        if content_hash(path) != digest:
            return f"{name} is damaged"
    return None


def refuse_damage(folder: Path, is_wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Raise `DamagedError` where `find_damage` finds something."""
    if (damage := find_damage(folder, is_wanted)) is not None:
        raise DamagedError(
            f"{folder}: {damage}; restore it, or remove {folder / COMPLETE_FILE} if you changed it on purpose"
        )


def is_model_file(name: str) -> bool:
    """Whether a file of a run, checkpoint or release says what its model is, or what it was trained with."""
    return "/" not in name and (name.endswith(_MODEL_SUFFIXES) or name == RECIPE_FILE)


def is_run_file(name: str) -> bool:
    """Whether a finished run's `complete` notes a file: what a release is made of."""
    return is_model_file(name) or name.startswith(f"{PLOTS_FOLDER}/")
