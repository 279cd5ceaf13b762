"""Paths that a table names, kept inside the folder the user named."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path, PureWindowsPath


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def find_name_escape(name: str) -> str | None:
    """Say why a path in a table may not be opened, whatever it is below.

    Args:
        name (`str`):
            The path as the table has it.

    Returns:
        `str` or `None`: the reason, or nothing when the path stays inside its folder, links aside.
    """
    if "\0" in name:
        return f"the image path has a NUL character: {name!r}"
    if "://" in name:
        return f"the image is a URL, not a file: {name}"
    if os.path.isabs(name) or PureWindowsPath(name).anchor:
        return f"the image path is not relative to the data folder: {name}"
    if ".." in name.replace("\\", "/").split("/"):
        return f"the image path leaves the data folder: {name}"
    return None


class DataFolder:
    """A folder that the paths in a table must not leave.

    The folder itself may be a symbolic link; what is below it may not lead out of it.

    Args:
        path (`str` or `Path`):
            The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.path.realpath(path)

    def path_of(self, name: str) -> str:
        """Return the full path of a relative one."""
        return os.path.join(self.path, name)

    def find_escape(self, name: str) -> str | None:
        """Say why a path in a table may not be opened.

        Args:
            name (`str`):
                The path as the table has it.

        Returns:
            `str` or `None`: the reason, or nothing when the path stays inside the folder.
        """
        return find_name_escape(name) or self.find_link_out(name)

    def find_link_out(self, name: str) -> str | None:
        """Say whether symbolic links lead a path out of the folder.

        Args:
            name (`str`):
                A path without `..`.

        Returns:
            `str` or `None`: the reason, or nothing when the path stays inside the folder.
        """
        full = self.path_of(name)
        parent, last = os.path.split(full)
        real = os.path.join(_real_folder(parent), last)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if real != self.path and not real.startswith(self.path.rstrip(os.sep) + os.sep):
            return f"the image path is a link out of the data folder: {name}"
        return None
