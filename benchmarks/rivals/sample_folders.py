"""The embedded drawings as folders in the layouts that the comparisons read, for whoever has no data at hand."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

import mmhf
from mmhf.data.sources.fakeddit import FILES, LABEL_NAMES
from mmhf.sample_data import read_sample

QUICK_ROWS = {"train": 320, "validation": 64, "test": 128}
"""Of the sample that `--quick` takes, drawn at random, always the same."""


def write_images(folder: Path, *, quick: bool) -> None:
    """`SPLIT/GROUP/NAME.jpg`."""
    for split in FILES:
        for number, drawing in enumerate(_drawings(split, quick=quick)):
            path = folder / split / drawing["group"] / f"{number:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(drawing["image"]["bytes"])


def write_captions(folder: Path, *, quick: bool) -> None:
    """`SPLIT/NAME.jpg` and `SPLIT/metadata.jsonl`."""
    for split in FILES:
        (folder / split).mkdir(parents=True)
        with (folder / split / "metadata.jsonl").open("w", encoding="utf-8") as stream:
            for number, drawing in enumerate(_drawings(split, quick=quick)):
                name = f"{number:04}.jpg"
                (folder / split / name).write_bytes(drawing["image"]["bytes"])
                stream.write(json.dumps({"file_name": name, "caption": drawing["caption"]}) + "\n")


def write_pairs(folder: Path, *, quick: bool) -> None:
    """Fakeddit's three TSV files and `images/ID.jpg`."""
    (folder / "images").mkdir(parents=True)
    names = LABEL_NAMES["2_way_label"]
    for split, rows in mmhf.load_dataset("quickstart/fusion", ["release=null"]).items():
        with (folder / FILES[split]).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, ["id", "clean_title", "hasImage", "2_way_label"], delimiter="\t")
            writer.writeheader()
            matched = rows.features["label"].str2int("matched")
            encoded = rows.cast_column("image", datasets.Image(decode=False))
            for number, row in enumerate(_some(encoded.to_list(), split, quick=quick)):
                key = f"{split}{number:04}"
                (folder / "images" / f"{key}.jpg").write_bytes(row["image"]["bytes"])
                label = names.index("true") if row["label"] == matched else names.index("fake")
                writer.writerow({"id": key, "clean_title": row["text"], "hasImage": True, "2_way_label": label})


WRITERS = {"images": write_images, "pairs": write_pairs, "retrieval": write_captions}


def _drawings(split: str, *, quick: bool) -> Iterable[Mapping[str, Any]]:
    return _some(read_sample(split).to_pylist(), split, quick=quick)


def _some(rows: list[Any], split: str, *, quick: bool) -> list[Any]:
    return random.Random(0).sample(rows, QUICK_ROWS[split]) if quick else rows
