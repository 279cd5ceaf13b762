"""Images behind URLs: a column of `datasets` that fetches them when rows are read."""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
from datasets.features.features import register_feature
from datasets.table import array_cast

from mmhf.data.columns import IMAGE_TYPE, codes_of
from mmhf.data.images import MAX_IMAGE_BYTES, BadImageError, ImageFault, NamedImages, find_name_escape
from mmhf.data.remote.files import Access, RemoteFile, RemoteFileError, RemoteFiles, remote_files
from mmhf.data.remote.paths import RemotePath

_MISSING = "missing"


class RemoteImage(Mapping[str, Any]):
    """An image on its way: `path` is its URL, and `bytes` waits for the content.

    Asking for `bytes` raises `BadImageError` when the image is missing or has changed, and `UnreachableError` when it
    cannot be fetched.
    """

    def __init__(self, url: str, fetch: Callable[[], bytes]) -> None:
        self._url = url
        self._fetch = fetch

    def __getitem__(self, key: str) -> Any:
        return {"path": lambda: self._url, "bytes": self._content}[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(("path", "bytes"))

    def __len__(self) -> int:
        return 2

    def _content(self) -> bytes:
        try:
            return self._fetch()
        except RemoteFileError as error:
            raise BadImageError(f"the image file cannot be used: {error}") from error


def _fetch_nothing() -> bytes:
    raise BadImageError("the image file is missing")


@dataclass
class RemoteImageFeature:
    """A column of images behind URLs; reading a row gives a `RemoteImage`, which is being fetched.

    What is stored is `URL#SIZE-VERSION`, the image as it was when the data was loaded. Other columns are read without
    fetching anything, and `with_format("arrow")` gives what is stored.

    Args:
        root (`str`):
            The URL that all images are below.
        cache_dir, max_bytes, connections, retries, prefetch:
            See `Access`.
    """

    root: str
    cache_dir: str
    max_bytes: int
    connections: int
    retries: int
    prefetch: int
    dtype: ClassVar[str] = "dict"
    pa_type: ClassVar[Any] = pa.struct({"path": pa.string(), "bytes": pa.binary()})
    _type: str = field(default="MmhfRemoteImage", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        return self.pa_type

    def encode_example(self, value: dict[str, Any]) -> dict[str, Any]:
        """What is stored of a value: itself."""
        return value

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """Arrow's array of what is stored."""
        return array_cast(storage, self.pa_type)

    def decode_example(
        self, value: dict[str, Any], token_per_repo_id: dict[str, Any] | None = None
    ) -> RemoteImage | dict[str, Any]:
        """Begin to fetch an image."""
        reference = value["path"]
        if reference is None:
            return value
        url, file = parse_reference(reference, self.root)
        return RemoteImage(url, _fetch_nothing if file is None else self.files().start(file))

    def files(self) -> RemoteFiles:
        """Where the images are."""
        access = Access(self.cache_dir, self.max_bytes, self.connections, self.retries, self.prefetch)
        return remote_files(self.root, access)


with warnings.catch_warnings():  # datasets 5.2 calls this experimental
    warnings.simplefilter("ignore", UserWarning)
    register_feature(RemoteImageFeature, "MmhfRemoteImage")


def parse_reference(reference: str, root: str = "") -> tuple[str, RemoteFile | None]:
    """Read what a `RemoteImageFeature` stores.

    Args:
        reference (`str`):
            `URL#SIZE-VERSION`.
        root (`str`, *optional*):
            The URL that the image is below; absent: the file's name is of no use.

    Returns:
        `tuple`: the image's URL, and the file as it was listed; None for one that was not there.
    """
    url, _, facts = reference.rpartition("#")
    size, _, version = facts.partition("-")
    if size == _MISSING:
        return url, None
    return url, RemoteFile(url[len(root) + 1 :], int(size) if size else None, version)


class RemoteImages(NamedImages):
    """Images named by path below a URL; the twin of `ImageFiles`, as `Images` asks for.

    They are listed once. What they contain is seen when they are decoded.

    Args:
        folder (`RemotePath`):
            The folder that no path may leave.
        names (`Sequence[str | None]`):
            A relative path for each row.
        listed (`bool`, defaults to `False`):
            The names come from a listing, so that they may be anything.
    """

    def __init__(self, folder: RemotePath, names: Sequence[str | None], *, listed: bool = False) -> None:
        self.folder = folder
        self.names = names
        distinct = {name for name in names if name}
        escapes = {} if listed else {name: find_name_escape(name) for name in distinct}
        self._escapes = {name: reason for name, reason in escapes.items() if reason is not None}
        # `./a.jpg` and `b//a.jpg` are other names where there are no folders.
        self._place_of = {
            name: name if listed else posixpath.normpath(name) for name in distinct if name not in self._escapes
        }
        # Only the folder that all images are in is listed: the URL may have much more below it.
        folders = {posixpath.dirname(place) for place in self._place_of.values()}
        self._files = self.folder.listed(posixpath.commonpath(folders)) if folders else {}

    @property
    def feature(self) -> RemoteImageFeature:
        """The type of the column."""
        return RemoteImageFeature(self.folder.files.url, *self.folder.files.access)

    def fault_of(self, name: str, *, read: bool) -> ImageFault | None:
        """See `NamedImages`; `read` compares with the listing."""
        if name in self._escapes:
            return ImageFault(self._escapes[name], "row")
        reason = self._reason(self._files.get(self._place_of[name])) if read else None
        return ImageFault(f"{reason}: {name}") if reason else None

    @staticmethod
    def _reason(file: RemoteFile | None) -> str | None:
        if file is None:
            return "the image file is missing"
        if file.size == 0:
            return "the image file is empty (0 bytes)"
        if file.size is not None and file.size > MAX_IMAGE_BYTES:
            return f"the image file has {file.size} bytes, more than {MAX_IMAGE_BYTES}"
        return None

    def locate(self, images: pa.StructArray) -> pa.StructArray:
        """See `Images`; what is stored is what `RemoteImageFeature` reads."""
        path, content = images.field("path"), images.field("bytes")
        codes, names = codes_of(path)
        stored = pa.array([self._reference(name) for name in names], pa.string())
        named = stored.take(pa.array(codes, mask=(codes < 0) | content.is_valid().to_numpy(zero_copy_only=False)))
        return pa.StructArray.from_arrays([named, content], fields=list(IMAGE_TYPE))

    def _reference(self, name: str) -> str | None:
        if name not in self._place_of:
            return None
        place = self._place_of[name]
        file = self._files.get(place)
        facts = _MISSING if file is None else f"{'' if file.size is None else file.size}-{file.version}"
        return f"{self.folder / place}#{facts}"
