"""Paths and URLs behind one face, so that a source reads either."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from mmhf.data.remote.files import Access, RemoteFile, RemoteFileError, RemoteFiles, remote_files
from mmhf.errors import InputError
from mmhf.recipe.sections import CloudSection


class RemotePath:
    """A URL with the part of `pathlib.Path` that reading needs.

    What is below a folder is listed once for all paths that were made from one another.

    Args:
        files (`RemoteFiles`):
            What the path is below.
        name (`str`, defaults to `""`):
            Its name there.
    """

    def __init__(
        self, files: RemoteFiles, name: str = "", listings: dict[str, dict[str, RemoteFile]] | None = None
    ) -> None:
        self.files = files
        self.inside = name
        self._listings: dict[str, dict[str, RemoteFile]] = {} if listings is None else listings

    def __str__(self) -> str:
        return self.files.url_of(self.inside)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.files, posixpath.join(self.inside, name), self._listings)

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return posixpath.basename(str(self))

    @property
    def suffix(self) -> str:
        """The ending of the name."""
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in."""
        if self.inside:
            return RemotePath(self.files, posixpath.dirname(self.inside), self._listings)
        return RemotePath(remote_files(str(self).rpartition("/")[0], self.files.access))

    def is_file(self) -> bool:
        """Whether it is a file."""
        return self.files.find(self.inside) is not None

    def exists(self) -> bool:
        """Whether it is a file; there are no folders of their own behind URLs."""
        return self.is_file()

    def is_dir(self) -> bool:
        """Whether there is anything below it."""
        return self.files.is_folder(self.inside)

    def iterdir(self) -> Iterator[RemotePath]:
        """The folders right below it."""
        return (self / name for name in self.files.list_folders(self.inside))

    def listed(self, folder: str = "") -> dict[str, RemoteFile]:
        """All files below it, however deep, as they were when they were first listed.

        Args:
            folder (`str`, defaults to `""`):
                Only those below this folder of it.

        Returns:
            `dict[str, RemoteFile]`: by name below the path.
        """
        inside = posixpath.join(self.inside, folder).rstrip("/")
        around = next((known for known in self._listings if _is_below(inside, known)), inside)
        if around not in self._listings:
            self._listings[around] = self.files.list_files(around)
        start = len(self.inside) + 1 if self.inside else 0
        found = self._listings[around]
        return {name[start:]: file for name, file in found.items() if _is_below(posixpath.dirname(name), inside)}

    def read_bytes(self) -> bytes:
        """The content, through the cache.

        Raises:
            FileNotFoundError: There is no such file.
            InputError: It changed while it was read.
        """
        file = self.files.find(self.inside)
        if file is None:
            raise FileNotFoundError(2, "No such file", str(self))
        try:
            return self.files.read(file)
        except RemoteFileError as error:
            raise InputError(f"{self}: {error}") from error

    def read_text(self, encoding: str = "utf-8") -> str:
        """The content as text."""
        return self.read_bytes().decode(encoding)


def _is_below(folder: str, other: str) -> bool:
    return not other or folder == other or folder.startswith(f"{other}/")


AnyPath = Path | RemotePath
"""Where data is."""


def data_path(place: str, cloud: CloudSection) -> AnyPath:
    """What a recipe's path or URL stands for.

    Args:
        place (`str`):
            A local path, a `file://` URL, or any other URL that fsspec opens.
        cloud (`CloudSection`):
            How to fetch and keep what is behind a URL.

    Raises:
        InputError: fsspec does not know such URLs, its package is not installed, or the URL holds credentials.
    """
    place = place.removeprefix("file://")
    if "://" not in place:
        return Path(place)
    if "::" in place:
        raise InputError(f"{place}: a URL of several parts; copy what is in it to a folder of its own")
    return RemotePath(remote_files(place.rstrip("/"), Access.of(cloud)))
