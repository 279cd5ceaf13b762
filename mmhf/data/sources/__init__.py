"""Where data comes from, one file a source: each offers the readers of its sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmhf.data.sources import clinical, fakeddit, flickr30k, hub, image_folder, sample, table, webdataset
from mmhf.data.table import Reading, SourceTable

READERS: Mapping[type, Callable[[Any, Reading], SourceTable]] = {
    section: read
    for source in (clinical, fakeddit, flickr30k, hub, image_folder, sample, table, webdataset)
    for section, read in source.READERS.items()
}
"""Section of a recipe → what reads its source."""
