from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from mmhf.recipe.data_sources import CaptionDataSection

SECTIONS: TypeAdapter[Any] = TypeAdapter(CaptionDataSection)


@pytest.mark.parametrize(
    "values",
    [
        {"source": "sample", "keywords": True, "captions": "all"},
        {"source": "flickr30k"},
        {"source": "flickr30k", "path": "x", "format": "csv", "split": {"validation": 0.05, "seed": 1}},
        {"source": "table", "path": "x", "columns": {"captions": ["one", "two"]}, "split_column": "part"},
        {"source": "table", "train": "x", "test": "y"},
        {"source": "hub", "path": "x", "streaming": True, "stream": {"epoch_samples": 100, "readers": 8}},
        {"source": "webdataset", "train": ["a-{000..099}.tar", "b.tar"], "caption": "json:captions"},
    ],
)
def test_every_source_has_its_section(values):
    section = SECTIONS.validate_python(values)
    assert section.source == values["source"] and section.image_size in (96, 224)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "fakeddit", "path": "x"}, "does not match any of the expected tags"),
        ({"source": "table"}, "give either `path`"),
        ({"source": "table", "path": "x", "train": "y"}, "give either `path`"),
        ({"source": "table", "train": "x", "split_column": "y"}, "cuts the one table"),
        ({"source": "hub", "path": "x", "split": {}, "split_column": "y"}, "not both"),
        ({"source": "hub", "path": "x", "streaming": True, "split": {}}, "a stream is not cut"),
        ({"source": "flickr30k", "split": {"validation": 0.5, "test": 0.5}}, "leaves no images to train on"),
        ({"source": "flickr30k", "on_empty_text": "blank"}, "'skip' or 'raise'"),
        ({"source": "flickr30k", "captions": "first"}, "'sample' or 'all'"),
        ({"source": "table", "path": "x", "find_duplicates": "never", "on_duplicate": "skip_across_splits"}, "needs"),
        ({"source": "webdataset"}, "Field required"),
        ({"source": "webdataset", "train": "x", "stream": {"shuffle_buffer": 0}}, "greater than 0"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        SECTIONS.validate_python(values)
