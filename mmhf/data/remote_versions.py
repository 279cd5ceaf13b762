"""What file systems behind URLs tell of a file that changes when the file does."""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

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
