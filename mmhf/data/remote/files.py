"""Files behind URLs: listed once, fetched by several threads with patience, checked, and kept in a bounded cache."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import posixpath
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets
import fsspec

from mmhf.data.remote.cache import FileCache, has_digest, may_be_equal, version_in
from mmhf.errors import InputError, UnreachableError
from mmhf.recipe.sections import CloudSection, hide_secrets, require_no_secret

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CLOUD_PROTOCOLS = ("gs", "gcs", "s3", "s3a")
_LONGEST_DELAY = 30.0


class RemoteFileError(Exception):
    """A file that was listed cannot be had as it was; the message is the reason."""


class Access(NamedTuple):
    """How files are fetched and kept; see `CloudSection`."""

    cache_dir: str
    max_bytes: int
    connections: int
    retries: int
    prefetch: int

    @classmethod
    def of(cls, section: CloudSection) -> Access:
        """What a recipe asks for."""
        folder = section.cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "mmhf_remote"
        return cls(os.path.abspath(folder), section.max_bytes, section.connections, section.retries, section.prefetch)


class RemoteFile(NamedTuple):
    """A file as it was when it was listed."""

    name: str
    """Below the URL that was listed; empty for that itself."""
    size: int | None
    version: str
    """`KIND:VALUE`: the digest of the content where the file system tells it; empty when it tells nothing."""


class _Client(NamedTuple):
    """What belongs to one process: connections do not survive a fork."""

    pid: int
    fs: Any
    root: str
    threads: ThreadPoolExecutor
    coming: dict[str, Future[bytes]]
    """Files that are being fetched, by their key in the cache."""
    lock: threading.Lock


class _Errors(NamedTuple):
    """What the client of a protocol raises."""

    failures: tuple[type[Exception], ...]
    is_refusal: Callable[[Exception], bool]
    """Of a failure: whether something is not allowed, so that it would fail again."""


class RemoteFiles:
    """The files below a URL.

    Args:
        url (`str`):
            Anything that fsspec opens: a folder, or a file. Credentials come from where the protocol's own tools take
            them.
        access (`Access`):
            Where copies are kept, and how hard to try.

    Raises:
        InputError: fsspec does not know such URLs, its package is not installed, or the URL holds credentials.
    """

    def __init__(self, url: str, access: Access) -> None:
        self.url = require_no_secret(url).rstrip("/")
        self.access = access
        self.cache = FileCache(access.cache_dir, access.max_bytes)
        self._client = self._connect()
        self._errors = _errors_of(url.partition("://")[0])

    def _connect(self) -> _Client:
        fs, root = open_filesystem(self.url)
        threads = ThreadPoolExecutor(self.access.connections)
        return _Client(os.getpid(), fs, root.rstrip("/"), threads, {}, threading.Lock())

    def _here(self) -> _Client:
        if self._client.pid != os.getpid():
            self._client = self._connect()
        return self._client

    def _fresh(self) -> Any:
        """The file system, which looks anew: that of `hf://` keeps listings although it was told not to."""
        fs = self._here().fs
        fs.invalidate_cache()
        return fs

    def _path(self, name: str) -> str:
        root = self._here().root
        return f"{root}/{name}" if name else root

    def url_of(self, name: str) -> str:
        """The URL of a file below this one."""
        return f"{self.url}/{name}" if name else self.url

    def list_files(self, folder: str = "") -> dict[str, RemoteFile]:
        """List what is below a folder, however deep.

        Args:
            folder (`str`, defaults to `""`):
                Below the URL.

        Returns:
            `dict[str, RemoteFile]`: by name, sorted; empty when there is no such folder.

        Raises:
            UnreachableError: it cannot be listed.
        """
        path = self._path(folder)
        try:
            found = self._try(folder, lambda: self._fresh().find(path, detail=True))
        except FileNotFoundError:
            return {}
        below = {posixpath.join(folder, name.removeprefix(path).lstrip("/")): info for name, info in found.items()}
        return {name: _file(name, below[name]) for name in sorted(below) if name != folder}

    def find(self, name: str) -> RemoteFile | None:
        """Look at one file.

        Raises:
            UnreachableError: it cannot be looked at.
        """
        try:
            info = self._try(name, lambda: self._fresh().info(self._path(name)))
        except FileNotFoundError:
            return None
        return _file(name, info) if info["type"] == "file" else None

    def is_folder(self, name: str) -> bool:
        """Whether there is anything below a name."""
        return bool(self._try(name, lambda: self._here().fs.isdir(self._path(name))))

    def list_folders(self, name: str) -> list[str]:
        """Names of the folders right below a folder."""
        entries = self._try(name, lambda: self._here().fs.ls(self._path(name), detail=True))
        return sorted(posixpath.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] != "file")

    def read(self, file: RemoteFile) -> bytes:
        """Read a file as it was listed, from the cache or else from where it is.

        Raises:
            RemoteFileError: it is not there any more, or has changed since it was listed.
            UnreachableError: it cannot be read, after as many trials as `access` says.
            InputError: the cache cannot be written.
        """
        content = None if file.size is None else self.cache.read(self._key(file), file.size)
        return self._fetch(file) if content is None else content

    def copy(self, name: str, target: Path) -> None:
        """Copy a large file to a place outside the cache.

        Raises:
            UnreachableError: it cannot be read.
        """
        self._try(name, lambda: self._here().fs.get_file(self._path(name), str(target)))

    def start(self, file: RemoteFile) -> Callable[[], bytes]:
        """Begin to fetch a file in a thread unless there is a copy; what comes back waits for it as `read` does.

        When that is forgotten before it was called, the file is fetched no more, unless that has begun.
        """
        again = partial(self.read, file)
        return again if self.cache.has(self._key(file)) else _Fetch(self._begin(file), again)

    def prefetch(self, file: RemoteFile) -> None:
        """Begin to put a file into the cache, in a thread; what goes wrong is met again by who needs the file."""
        if not self.cache.has(self._key(file)):
            self._begin(file)

    def _begin(self, file: RemoteFile) -> Future[bytes]:
        client, key = self._here(), self._key(file)
        with client.lock:
            future = client.coming.get(key)
            if future is None:
                future = client.coming[key] = client.threads.submit(self.read, file)
        future.add_done_callback(lambda _: client.coming.pop(key, None))
        return future

    def _key(self, file: RemoteFile) -> str:
        return hashlib.sha256(f"{self.url_of(file.name)}\n{file.size}\n{file.version}".encode()).hexdigest()

    def _fetch(self, file: RemoteFile) -> bytes:
        try:
            content = self._try(file.name, lambda: self._download(file))
        except FileNotFoundError as error:
            raise RemoteFileError("it is not there any more") from error
        if file.size is not None:
            self.cache.write(self._key(file), content)
        return content

    def _download(self, file: RemoteFile) -> bytes:
        fs, path = self._here().fs, self._path(file.name)
        content: bytes = fs.cat_file(path)
        if has_digest(content, file.version):
            return content
        if not may_be_equal(file.version, version_in(self._fresh().info(path))):
            raise RemoteFileError("it has changed since the data was loaded")
        kind = file.version.partition(":")[0]
        if kind in ("md5", "sha256", "git") or (file.size is not None and len(content) != file.size):
            raise OSError(f"{len(content)} bytes came that are not those of the file")
        return content

    def _try(self, name: str, call: Callable[[], T]) -> T:
        """Call, again and again when that fails in a way that may pass."""
        for attempt in range(self.access.retries + 1):
            try:
                return call()
            except FileNotFoundError:
                raise
            except self._errors.failures as error:
                if self._errors.is_refusal(error):
                    reason = f"no permission to read {self.url_of(name)}: {_first_line(error)}"
                    raise UnreachableError(reason) from error
                if attempt == self.access.retries:
                    raise UnreachableError(f"cannot read {self.url_of(name)}: {_first_line(error)}") from error
                delay = min(2.0**attempt, _LONGEST_DELAY) * random.SystemRandom().uniform(0.5, 1)
                logger.warning("%s: %s; trying again in %.1f s", self.url_of(name), _first_line(error), delay)
                time.sleep(delay)
        raise AssertionError("the last trial returns or raises")


class _Fetch:
    """A file on its way."""

    def __init__(self, future: Future[bytes], again: Callable[[], bytes]) -> None:
        self._future = future
        self._again = again

    def __call__(self) -> bytes:
        try:
            return self._future.result()
        except CancelledError:  # by somebody else who wanted the same file and then did not
            return self._again()

    def __del__(self) -> None:
        self._future.cancel()


@lru_cache(maxsize=64)
def remote_files(url: str, access: Access) -> RemoteFiles:
    """The files below a URL; asked for again, the same connections are used."""
    return RemoteFiles(url, access)


def open_filesystem(url: str) -> tuple[Any, str]:
    """Open what a URL is on.

    Args:
        url (`str`):
            Without credentials.

    Returns:
        `tuple`: the file system, which keeps no listings, and the path in it.

    Raises:
        InputError: fsspec does not know such URLs, or the package for them is not installed.
    """
    protocol = url.partition("://")[0]
    if protocol in ("gs", "gcs"):
        # gcsfs 2026.10 asks every bucket by gRPC first what kind it is, and gRPC hangs in workers that are forked.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        way_out = "pip install 'mmhf[cloud]'" if protocol in _CLOUD_PROTOCOLS else _first_line(error)
        raise InputError(f"{url}: the package for {protocol}:// is not installed: {way_out}") from error
    except ValueError as error:
        raise InputError(f"{url}: {_first_line(error)}") from error
    return fs, path


def _file(name: str, info: dict[str, Any]) -> RemoteFile:
    size = info.get("size")
    return RemoteFile(name, None if size is None else int(size), version_in(info))


def failures_of(url: str) -> tuple[type[Exception], ...]:
    """What reading from a path or URL raises when it fails."""
    return _errors_of(url.partition("://")[0] if "://" in url else "").failures


@lru_cache
def _errors_of(protocol: str) -> _Errors:
    if not protocol:
        return _Errors((OSError,), partial(_is_any, (PermissionError,)))
    import aiohttp  # here, because files of this machine need none

    failures: tuple[type[Exception], ...] = (OSError, aiohttp.ClientError, asyncio.TimeoutError)
    refusals: tuple[type[Exception], ...] = (PermissionError,)
    if protocol in ("s3", "s3a"):
        from botocore import exceptions as aws

        refusals += (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)
        refusals += (aws.ProfileNotFound, aws.NoAuthTokenError, aws.TokenRetrievalError, aws.SSOError)
        return _Errors((*failures, aws.BotoCoreError, aws.ClientError), partial(_is_any, refusals))
    if protocol in ("gs", "gcs"):
        from gcsfs.retry import ChecksumError, HttpError
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError

        def is_refusal(error: Exception) -> bool:
            if isinstance(error, HttpError):
                return error.code in (401, 403)
            return isinstance(error, (*refusals, DefaultCredentialsError, RefreshError)) or (
                isinstance(error, OSError) and str(error).startswith("Forbidden")
            )

        return _Errors((*failures, HttpError, ChecksumError, GoogleAuthError), is_refusal)
    if protocol == "hf":
        from httpx import HTTPError

        failures += (HTTPError,)
    return _Errors(failures, partial(_is_any, refusals))


def _is_any(kinds: tuple[type[Exception], ...], error: Exception) -> bool:
    return isinstance(error, kinds)


def _first_line(error: BaseException) -> str:
    return hide_secrets((str(error).strip() or type(error).__name__).splitlines()[0])
