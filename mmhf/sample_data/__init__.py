"""The embedded data set: 96-pixel drawings of emoji by two artists, with their names."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SAMPLE_PATH = Path(__file__).parent / "sample.parquet"


def read_sample(split: str | None = None) -> pa.Table:
    """Read the embedded drawings, one row a drawing, in the order of the file.

    Args:
        split (`str`, *optional*):
            `"train"` (Noto's drawings), `"validation"` or `"test"` (Fluent's); absent: all.

    Returns:
        `pyarrow.Table`: `image` (struct of JPEG `bytes` and `path`), `caption` (CLDR's name), `captions` (the name and
        up to four others), `keywords` (list), `group`, `subgroup`, `vendor`, `hexcode`, `split`.
    """
    return pq.read_table(SAMPLE_PATH, filters=None if split is None else [("split", "==", split)])
