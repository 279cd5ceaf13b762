from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_data import make_rows, write_images


@pytest.fixture
def images(tmp_path: Path) -> Callable[[str, int], list[str]]:
    """Write so many images into a folder of the test's own; gives their names."""
    return lambda folder, count: write_images(tmp_path / folder, count)


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return make_rows(tmp_path)
