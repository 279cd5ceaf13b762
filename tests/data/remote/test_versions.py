from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from typing import Any

import pytest

from mmhf.data.remote.cache import has_digest, may_be_equal, version_in

_CONTENT = b"an image"
_MD5 = hashlib.md5(_CONTENT).hexdigest()


@pytest.mark.parametrize(
    ("info", "version", "is_digest"),
    [
        ({"md5Hash": "AAECAwQFBgcICQoLDA0ODw==", "etag": "x"}, "md5:000102030405060708090a0b0c0d0e0f", False),
        ({"ETag": f'"{_MD5}"', "LastModified": "now"}, f"etag:{_MD5}", True),
        ({"ETag": f'"{_MD5}-3"'}, f"etag:{_MD5}-3", False),
        ({"blob_id": "ab", "lfs": {"sha256": hashlib.sha256(_CONTENT).hexdigest()}}, None, True),
        ({"blob_id": hashlib.sha1(b"blob 8\0" + _CONTENT).hexdigest(), "lfs": None}, None, True),
        ({"mtime": 1.5, "size": 3}, "seen:mtime=1.5", False),
        ({"size": 3, "type": "file"}, "", False),
    ],
)
def test_what_stores_tell_of_a_file(info: dict[str, Any], version: str | None, is_digest: bool) -> None:
    if version is not None:
        assert version_in(info) == version
    assert has_digest(_CONTENT, version_in(info)) == is_digest
    assert not has_digest(_CONTENT + b"!", version_in(info))
    assert "#" not in version_in({**info, "generation": "a#b"})


def test_a_closer_look_may_tell_more_than_a_listing() -> None:
    moment = datetime(2026, 1, 2, tzinfo=timezone.utc)
    listed = version_in({"created": moment.timestamp()})
    assert may_be_equal(listed, version_in({"created": moment, "mtime": 5}))
    assert not may_be_equal(listed, version_in({"created": datetime(2026, 1, 3, tzinfo=timezone.utc)}))
    assert may_be_equal("", version_in({"created": moment}))
    assert not may_be_equal("md5:00", "md5:01")
    assert not may_be_equal("md5:00", "seen:mtime=1")
