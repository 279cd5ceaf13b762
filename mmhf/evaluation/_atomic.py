"""Files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write UTF-8 text so that no reader ever sees half of it, whenever the process is killed.

    Parent folders are made. A lone surrogate, as Python reads a file name that is not UTF-8, is written as `\\udcff`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
