"""Files of a stream: tars of `000.jpg`, `000.txt`, `000.json`, and parquet files, read from front to back."""

from __future__ import annotations

import gzip
import json
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from mmhf.conventions import as_text
from mmhf.data.captions import captions_in, clean_captions
from mmhf.data.images import MAX_IMAGE_BYTES
from mmhf.data.remote.cache import version_of
from mmhf.data.remote.files import failures_of

UNREADABLE = (
    OSError,
    EOFError,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    pa.ArrowException,
)
"""What reading a damaged or missing file was seen to raise, beside `failures_of` its URL."""
_ROWS_AT_ONCE = 64


class ShardImage(NamedTuple):
    """An image of a shard with its captions."""

    number: int
    """Of the sample in its shard, from 1."""
    id: str
    content: bytes
    """Empty when only captions are read."""
    captions: list[str]
    """At least one, none empty."""


class ShardFault(NamedTuple):
    """A sample, or the rest of a shard, that cannot be used."""

    number: int
    id: str
    reason: str
    key: Literal["on_bad_row", "on_bad_image", "on_empty_text", "on_bad_shard"]


class Shard(Protocol):
    """A file of a stream."""

    @property
    def url(self) -> str:
        """Its path or URL."""
        ...

    def read(self, *, with_images: bool = True) -> Iterator[ShardImage | ShardFault]:
        """Go through the samples; `with_images=False` reads captions alone, and finds the same samples."""
        ...

    def version(self) -> str:
        """What changes when the file does, and how it is read; the empty string when it cannot be looked at."""
        ...


def shard_name(url: str) -> str:
    """The file's name without its folder."""
    return posixpath.basename(urlsplit(url).path if "://" in url else url)


def _version(url: str, *how: object) -> str:
    try:
        fs, path = fsspec.core.url_to_fs(url)
        return json.dumps([url, version_of(fs.info(path)), *how])
    except (*UNREADABLE, *failures_of(url)):
        return ""


@dataclass(frozen=True)
class TarShard:
    """A tar whose members come in groups of one name, as WebDataset writes them.

    What is damaged ends the shard: samples before it are read, the one that it lies in is not.

    Args:
        url (`str`):
            Path or URL.
        image (`tuple[str, ...]`):
            Endings of the members that are images, the first that is there.
        caption (`str`):
            Ending of the member with the caption, or `json:KEY`.
    """

    url: str
    image: tuple[str, ...]
    caption: str

    def version(self) -> str:
        """See `Shard`."""
        return _version(self.url, self.image, self.caption)

    def read(self, *, with_images: bool = True) -> Iterator[ShardImage | ShardFault]:
        """See `Shard`."""
        number = 0
        members: dict[str, Any] = {}
        try:
            for key, ending, read in _tar_members(self.url):
                if key != members.get("key"):
                    if members:
                        yield self._sample(number, members)
                    number += 1
                    members = {"key": key}
                if ending in members:
                    members["twice"] = ending
                elif ending in self.image:
                    preferred = self.image[: self.image.index(ending)]
                    is_chosen = not any(other in members for other in preferred)
                    members[ending] = read() if with_images and is_chosen else b""
                elif ending == self.caption.partition(":")[0]:
                    members[ending] = read()
            if members:
                yield self._sample(number, members)
        except (*UNREADABLE, *failures_of(self.url)) as error:
            yield _fault(self.url, max(number, 1), error)

    def _sample(self, number: int, members: dict[str, Any]) -> ShardImage | ShardFault:
        name = f"{shard_name(self.url)}/{members['key']}"
        if "twice" in members:
            return ShardFault(number, name, f"two members end in .{members['twice']}", "on_bad_row")
        try:
            captions = clean_captions(self._captions(members))
        except ValueError as error:
            return ShardFault(number, name, str(error), "on_bad_row")
        ending = next((ending for ending in self.image if ending in members), None)
        if ending is None:
            return ShardFault(number, name, f"no member ends in .{', .'.join(self.image)}", "on_bad_image")
        if not captions:
            return ShardFault(number, name, "the image has no caption", "on_empty_text")
        return ShardImage(number, name, members[ending], captions)

    def _captions(self, members: dict[str, Any]) -> list[str | None]:
        ending, _, key = self.caption.partition(":")
        if ending not in members:
            return []
        try:
            text = members[ending].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"the .{ending} member is not UTF-8") from error
        if not key:
            return [text]
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"the .{ending} member is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"the .{ending} member is not a JSON object")
        return captions_in(content.get(key))


class _StrictTarInfo(tarfile.TarInfo):
    """Damage in the middle of a tar is an error, which tarfile takes for its end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the regular end, a block of zeros
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without an end mark") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from error


def _tar_members(url: str) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """Key, ending and content of each file in a tar."""
    is_remote = "://" in url
    # A local file is sought through, so that what is not read costs nothing; a remote one is read as it comes.
    mode: Literal["r|*", "r:*"] = "r|*" if is_remote else "r:*"
    with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode=mode, tarinfo=_StrictTarInfo) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every member that it has passed
            folder, name = posixpath.split(member.name)
            stem, _, ending = name.partition(".")
            if member.isfile() and stem:
                yield posixpath.join(folder, stem), ending.lower(), partial(_read_member, tar, member)


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_IMAGE_BYTES:
        raise tarfile.ReadError(f"{member.name} has {member.size} bytes, more than {MAX_IMAGE_BYTES}")
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def _fault(url: str, number: int, error: BaseException) -> ShardFault:
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    what = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged or cannot be read: {cause}"
    reason = f"the file {what}; what it has from sample {number} on is left out"
    return ShardFault(number, shard_name(url), reason, "on_bad_shard")


@dataclass(frozen=True)
class ParquetShard:
    """A parquet file with a column of images.

    Args:
        url (`str`):
            Path or URL.
        image (`str`):
            Column of the images: their content, or a struct of `bytes` and `path` as `datasets` writes it.
        captions (`tuple[str, ...]`):
            Columns of texts or of lists of texts.
        id (`str`, *optional*):
            Column of the names; absent: the row's number.
    """

    url: str
    image: str
    captions: tuple[str, ...]
    id: str | None = None

    def version(self) -> str:
        """See `Shard`."""
        return _version(self.url, self.image, self.captions, self.id)

    def read(self, *, with_images: bool = True) -> Iterator[ShardImage | ShardFault]:
        """See `Shard`."""
        number = 0
        wanted = [*self.captions, *([self.id] if self.id else []), *([self.image] if with_images else [])]
        try:
            with fsspec.open(self.url, "rb") as file:
                for batch in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, columns=wanted):
                    for row in batch.to_pylist():
                        number += 1
                        yield self._sample(number, row, with_images)
        except (*UNREADABLE, *failures_of(self.url)) as error:
            yield _fault(self.url, number + 1, error)

    def _sample(self, number: int, row: dict[str, Any], with_images: bool) -> ShardImage | ShardFault:
        given = None if self.id is None else as_text(row[self.id])
        name = f"{shard_name(self.url)}/{given or number}"
        try:
            captions = clean_captions(text for column in self.captions for text in captions_in(row[column]))
        except ValueError as error:
            return ShardFault(number, name, str(error), "on_bad_row")
        if not captions:
            return ShardFault(number, name, "the image has no caption", "on_empty_text")
        image = row[self.image] if with_images else None
        # A row without an image is found when it is decoded, as a broken one: counting reads captions alone.
        return ShardImage(number, name, (image["bytes"] if isinstance(image, dict) else image) or b"", captions)
