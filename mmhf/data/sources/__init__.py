"""Where data comes from, one file a source: each offers the readers of its sections."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from mmhf.data.sources import clinical, fakeddit, flickr30k, hub, image_folder, joined, sample, table, webdataset
from mmhf.data.table import Reading, SourceTable

_OF_ONE: Mapping[type, Callable[[Any, Reading], SourceTable]] = {
    section: read
    for source in (clinical, fakeddit, flickr30k, hub, image_folder, sample, table, webdataset)
    for section, read in source.READERS.items()
}
READERS: Mapping[type, Callable[[Any, Reading], SourceTable]] = {
    **_OF_ONE,
    **dict.fromkeys(joined.SECTIONS, functools.partial(joined.read_joined, readers=_OF_ONE)),
}
"""Section of a recipe → what reads its source."""
