"""A bounded folder of copies of remote files, shared by processes, and what tells that a remote file has changed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import time
import uuid
from base64 import b64decode
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from filelock import FileLock

from mmhf.errors import InputError

logger = logging.getLogger(__name__)

_LOCK, _TOTAL = ".lock", ".total"
_TEMPORARY = ".new-"
_KEPT = 0.9
"""Share of the bound that is left when copies are removed, so that not every new one removes another."""
_STALE_SECONDS = 3600.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Copy(NamedTuple):
    last_used: int
    size: int
    path: str


class FileCache:
    """Contents under keys; what was used longest ago goes when there is no room.

    A copy appears complete or not at all. Reading takes no lock; adding a copy takes one for as long as it takes to
    rename a file and to write the total size, and to remove others once in a while. A killed process leaves at most
    its unfinished file, which is removed later.

    Args:
        folder (`str` or `Path`):
            Made when it is absent. The folder itself is not looked through unless there is no room.
        max_bytes (`int`):
            Size of all copies together. Larger contents are not kept.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder = str(folder)
        self.max_bytes = max_bytes

    def read(self, key: str, size: int) -> bytes | None:
        """Read a copy, which is then the one used last.

        Args:
            key (`str`):
                Letters and digits, at least three.
            size (`int`):
                How many bytes it must have.

        Returns:
            `bytes` or `None`: nothing when there is no such copy, or it was cut off.
        """
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                content = file.read()
                with contextlib.suppress(PermissionError):  # another user's copy
                    os.utime(file.fileno())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return content if len(content) == size else None

    def has(self, key: str) -> bool:
        """Whether there is a copy."""
        return os.path.exists(self._path(key))

    def write(self, key: str, content: bytes) -> None:
        """Keep a copy.

        Args:
            key (`str`):
                Letters and digits, at least three.
            content (`bytes`):
                What `read` gives back.

        Raises:
            InputError: the folder cannot be written, or the disk is full even without the copies that were there.
        """
        if len(content) > self.max_bytes:
            return
        path = self._path(key)
        try:
            temporary = self._write_temporary(path, content)
            with self._locked():
                self._add(temporary, path, len(content))
        except OSError as error:
            if error.errno in _FULL:
                raise InputError(
                    f"data.cloud.cache_dir: the disk of {self.folder} is full; free some of it, or name another folder"
                ) from error
            raise InputError(f"data.cloud.cache_dir: cannot write to {self.folder}: {error.strerror}") from error

    def _path(self, key: str) -> str:
        return os.path.join(self.folder, key[:2], key)

    def _locked(self) -> FileLock:
        return FileLock(os.path.join(self.folder, _LOCK))

    def _write_temporary(self, path: str, content: bytes) -> str:
        folder = os.path.dirname(path)
        temporary = os.path.join(folder, f"{_TEMPORARY}{uuid.uuid4().hex}")
        os.makedirs(folder, exist_ok=True)
        try:
            _write_file(temporary, content)
        except OSError as error:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
            if error.errno not in _FULL or not self._give_way(len(content)):
                raise
            _write_file(temporary, content)
        return temporary

    def _give_way(self, needed: int) -> bool:
        """Remove a tenth of the copies, because something else has filled the disk; says whether that freed enough."""
        with self._locked():
            before = sum(copy.size for copy in self._copies())
            after = self._shrink(min(int(_KEPT * before), before - needed))
            self._note_total(after)
        logger.warning("the disk of %s is full: removed %.0f MB of copies", self.folder, (before - after) / 1e6)
        return before - after >= needed

    def _add(self, temporary: str, path: str, size: int) -> None:
        replaced = os.path.getsize(path) if os.path.exists(path) else 0
        total = self._noted_total() - replaced + size
        if total > self.max_bytes:
            total = self._shrink(int(_KEPT * self.max_bytes) - size) + size
        self._note_total(total)
        os.replace(temporary, path)

    def _noted_total(self) -> int:
        try:
            with open(os.path.join(self.folder, _TOTAL), encoding="ascii") as file:
                noted = file.read()
        except FileNotFoundError:
            noted = ""
        # A process that was killed may have left half a number.
        return int(noted) if noted.endswith("\n") else sum(copy.size for copy in self._copies())

    def _note_total(self, total: int) -> None:
        with open(os.path.join(self.folder, _TOTAL), "w", encoding="ascii") as file:
            file.write(f"{total}\n")

    def _shrink(self, limit: int) -> int:
        """Remove what was used longest ago until at most `limit` bytes are left; returns how many are."""
        copies = sorted(self._copies())
        total = sum(copy.size for copy in copies)
        for copy in copies:
            if total <= limit:
                break
            _remove(copy.path)
            total -= copy.size
        return total

    def _copies(self) -> list[_Copy]:
        """All copies; unfinished ones that nobody can be at work on any more are removed."""
        oldest = time.time_ns() - int(_STALE_SECONDS * 1e9)
        copies = []
        for folder in _entries(self.folder):
            for entry in _entries(folder.path) if folder.is_dir() else ():
                try:
                    facts = entry.stat()
                except FileNotFoundError:  # an unfinished one that is finished by now
                    continue
                if not entry.name.startswith(_TEMPORARY):
                    copies.append(_Copy(facts.st_mtime_ns, facts.st_size, entry.path))
                elif facts.st_mtime_ns < oldest:
                    _remove(entry.path)
        return copies


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _write_file(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


VERSION_KEYS = (
    "mtime",
    "etag",
    "created",
    "updated",
    "lastmodified",
    "last_modified",
    "generation",
    "md5hash",
)
"""What file systems call that which changes when a file does, in small letters."""
_MD5 = re.compile(r'"?([0-9a-f]{32})(-\d+)?"?')


def version_of(info: dict[str, Any]) -> list[list[str]]:
    """What fsspec tells of a file that changes when the file does."""
    return sorted([name, str(value)] for name, value in info.items() if name.lower() in (*VERSION_KEYS, "size"))


def version_in(info: dict[str, Any]) -> str:
    """What a file system tells of a file, as `KIND:VALUE`.

    Args:
        info (`dict`):
            What fsspec's `info` or `find` gives for it.

    Returns:
        `str`: of the kind `md5`, `sha256` or `git`, which say what the content is; `etag`, which may; `seen`, all that
        it tells that changes with the file; or the empty string when it tells nothing.
    """
    if (large := info.get("lfs")) is not None:
        return f"sha256:{large['sha256']}"
    if info.get("blob_id"):
        return f"git:{info['blob_id']}"
    if info.get("md5Hash"):
        return f"md5:{b64decode(info['md5Hash']).hex()}"
    told = {key.lower(): value for key, value in info.items() if key.lower() in VERSION_KEYS and value is not None}
    if etag := _MD5.fullmatch(str(told.get("etag", ""))):
        return f"etag:{etag[1]}{etag[2] or ''}"
    # A time can be a number in a listing, and a datetime in a closer look.
    texts = {key: value.timestamp() if isinstance(value, datetime) else value for key, value in told.items()}
    return f"seen:{urlencode(sorted(texts.items()))}" if told else ""


def may_be_equal(version: str, other: str) -> bool:
    """Whether two versions are of the same file, as far as they tell: a listing may tell less than a closer look."""
    kinds = {version.partition(":")[0], other.partition(":")[0]}
    if kinds != {"seen"}:
        return version == other or "" in kinds
    told, others = (dict(parse_qsl(text.partition(":")[2])) for text in (version, other))
    return all(others[key] == value for key, value in told.items() if key in others)


def has_digest(content: bytes, version: str) -> bool:
    """Whether a version is the digest of a content: that of an S3 object often is, but not always."""
    kind, _, value = version.partition(":")
    if kind in ("md5", "etag"):
        return hashlib.md5(content, usedforsecurity=False).hexdigest() == value
    if kind == "sha256":
        return hashlib.sha256(content).hexdigest() == value
    if kind == "git":
        header = b"blob %d\0" % len(content)
        return hashlib.sha1(header + content, usedforsecurity=False).hexdigest() == value
    return False
