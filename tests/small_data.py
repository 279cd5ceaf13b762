"""Small data sets as people have them: pictures of one colour each, tables, tars."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

WORDS = (
    "a red bird",
    "two green frogs on a leaf",
    "the old house by the sea",
    "a cat that sleeps",
    "five small boats",
)


def picture(number: int, side: int = 40) -> bytes:
    """A JPEG of its own colour."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side + 8), (number * 37 % 256, number * 91 % 256, number * 53 % 256)).save(stream, "JPEG")
    return stream.getvalue()


def write_images(folder: Path, count: int) -> list[str]:
    """Write so many images into a folder; gives their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:03}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number))
    return names


def make_rows(folder: Path, count: int = 40) -> list[dict[str, Any]]:
    """Rows of an id, an image below `folder/photos`, a title, one of three classes, a number and a date."""
    return [
        {
            "id": 1000 + number,
            "photo": name,
            "title": f"{WORDS[number % 5]} number {number}",
            "kind": ("bird", "frog", "house")[number % 3],
            "price": 1.5 + number,
            "seen": f"2024-01-{number % 28 + 1:02}",
        }
        for number, name in enumerate(write_images(folder / "photos", count))
    ]


def write_csv(path: Path, rows: list[dict[str, Any]], separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
