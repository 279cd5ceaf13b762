"""One image's path, followed from a table to the training step."""

from __future__ import annotations

import mmhf  # (first: it makes torchvision importable beside a CPU build of torch)

import csv  # isort: skip
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from small_data import picture
from transformers import TrainerCallback

PACKAGE = os.path.dirname(str(mmhf.__file__)) + os.sep
WALKED = "the_image_that_is_followed.jpg"
MOST_FILES = 12
_CALLS = 300
"""Calls of one function that are looked at: one that never holds the path must not be slow to follow."""


class Walk:
    """The package's files in which a function holds a path: as an argument, a local name or what it returns.

    Lists and dicts are looked into, columns of a whole table are not: they hold every path.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.files: dict[str, str] = {}
        self._calls: dict[CodeType, int] = {}

    def profile(self, frame: FrameType, event: str, arg: object) -> None:
        """As `sys.setprofile` calls it."""
        code = frame.f_code
        calls = self._calls.get(code, 0 if code.co_filename.startswith(PACKAGE) else _CALLS)
        if event not in ("call", "return") or calls >= _CALLS or code.co_filename in self.files:
            self._calls[code] = calls
            return
        self._calls[code] = calls + 1
        if self._is_in(arg) or any(self._is_in(value) for value in frame.f_locals.values()):
            self.files[code.co_filename] = code.co_name

    def _is_in(self, value: object, depth: int = 0) -> bool:
        if isinstance(value, str | os.PathLike):
            return self.name in os.fspath(value)
        if depth < 2 and isinstance(value, dict):
            return any(self._is_in(each, depth + 1) for each in list(value.values()))
        if depth < 2 and isinstance(value, list | tuple):
            return any(self._is_in(each, depth + 1) for each in value)
        return False


class EndOfWalk(TrainerCallback):
    """Stops looking when the first step is done: plots and reports come after it."""

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        sys.setprofile(None)
        threading.setprofile(None)


@pytest.fixture
def walk() -> Iterator[Callable[[], Walk]]:
    walk = Walk(WALKED)

    def begin() -> Walk:
        threading.setprofile(walk.profile)
        sys.setprofile(walk.profile)
        return walk

    yield begin
    sys.setprofile(None)
    threading.setprofile(None)


def write_table(folder: Path) -> Path:
    (folder / "images").mkdir()
    names = [WALKED, *(f"other_{number}.jpg" for number in range(7))]
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "split"])
        for number, name in enumerate(names):
            (folder / "images" / name).write_bytes(picture(number))
            writer.writerow([name, "ab"[number % 2], "train"])
    return folder / "table.csv"


@pytest.mark.slow
def test_an_image_path_passes_through_few_files(walk: Callable[[], Walk], tmp_path: Path) -> None:
    recipe = {
        "task": "image-classification",
        "model": {"vision": {"backbone": "timm/test_efficientnet", "pretrained": False}},
        "data": {
            "source": "table",
            "path": str(write_table(tmp_path)),
            "columns": {"image": "file", "label": "label"},
            "image_root": str(tmp_path / "images"),
            "split_column": "split",
            "image_size": 32,
            "augment": {"horizontal_flip": 0.5},
        },
        "training": {"per_device_train_batch_size": 8, "max_steps": 1, "output_dir": str(tmp_path / "run")},
    }
    train = functools.partial(mmhf.train, recipe, callbacks=[EndOfWalk()])  # imports it
    walked = walk()
    train()
    files = {os.path.relpath(file, PACKAGE): function for file, function in walked.files.items()}
    assert {"data/table.py", "data/images.py", "data/collators.py"} <= files.keys(), files
    assert len(files) <= MOST_FILES, files
