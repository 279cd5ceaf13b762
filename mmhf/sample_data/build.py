"""Make `sample.parquet`: `python -m mmhf.sample_data.build DRAWINGS EMOJIBASE [OUTPUT]`.

DRAWINGS is the folder `train` of the data set emoji-captions (JPEG files and `metadata.jsonl`), EMOJIBASE the unpacked
npm package `emojibase-data`. The same inputs give the same rows in the same order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmhf.sample_data import SAMPLE_PATH

SHORTCODE_SETS = ("emojibase", "emojibase-legacy", "github", "iamcal")
CAPTIONS_PER_DRAWING = 5
# Drawings that 96 pixels cannot tell apart, left out to stay under 6 MB: families, clock faces, mirrored people.
LOOK_ALIKES = re.compile(r"^family\b|o’clock$|-thirty$|: facing right$")

SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("caption", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("keywords", pa.list_(pa.string())),
        ("group", pa.string()),
        ("subgroup", pa.string()),
        ("vendor", pa.string()),
        ("hexcode", pa.string()),
        ("split", pa.string()),
    ],
    # What `datasets` reads to show the column as images.
    metadata={"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
)


def read_names(emojibase: Path) -> dict[str, list[str]]:
    """Read the shortcodes of each emoji as words.

    Args:
        emojibase (`Path`):
            The unpacked npm package `emojibase-data`.

    Returns:
        `dict[str, list[str]]`: lower-case hexcode without variation selectors → distinct names, in the order of
        `SHORTCODE_SETS`.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for name in SHORTCODE_SETS:
        path = emojibase / "en" / "shortcodes" / f"{name}.json"
        for hexcode, codes in json.loads(path.read_text(encoding="utf-8")).items():
            key = hexcode.lower().replace("-fe0f", "")
            for code in [codes] if isinstance(codes, str) else codes:
                words = re.sub(r"[_-]+", " ", code).strip()
                if words not in names[key]:
                    names[key].append(words)
    return dict(names)


def assign_splits(records: list[dict[str, Any]]) -> dict[str, str]:
    """Cut one artist's drawings: the third of each group with the smallest hashes is validation, the rest test.

    Args:
        records (`list[dict]`):
            Rows with `hexcode` and `group`.

    Returns:
        `dict[str, str]`: hexcode → split.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for record in records:
        groups[record["group"]].append(record["hexcode"])
    splits = {}
    for hexcodes in groups.values():
        ordered = sorted(hexcodes, key=lambda code: hashlib.sha256(code.encode()).hexdigest())
        first_test = round(len(ordered) / 3)
        splits.update(dict.fromkeys(ordered[:first_test], "validation"))
        splits.update(dict.fromkeys(ordered[first_test:], "test"))
    return splits


def build_rows(drawings: Path, emojibase: Path) -> list[dict[str, Any]]:
    """Collect the rows of the sample: Noto's drawings for training, Fluent's of the same emoji to evaluate.

    Args:
        drawings (`Path`):
            Folder with the JPEG files and `metadata.jsonl`.
        emojibase (`Path`):
            The unpacked npm package `emojibase-data`.

    Returns:
        `list[dict]`: rows in the order train, validation, test and then by hexcode.
    """
    names = read_names(emojibase)
    lines = (drawings / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if not LOOK_ALIKES.search(record["caption"])]
    held_out = assign_splits([record for record in records if record["vendor"] == "fluent"])
    rows = []
    for record in records:
        vendor, hexcode = record["vendor"], record["hexcode"]
        if vendor not in ("noto", "fluent"):
            continue
        content, caption = (drawings / record["file_name"]).read_bytes(), record["caption"]
        others = [name for name in names.get(hexcode, []) if name.lower() != caption.lower()]
        rows.append(
            {
                "image": {"bytes": content, "path": f"{vendor}/{hexcode}.jpg"},
                "caption": caption,
                "captions": [caption, *others][:CAPTIONS_PER_DRAWING],
                "split": "train" if vendor == "noto" else held_out[hexcode],
                **{key: record[key] for key in ("keywords", "group", "subgroup", "vendor", "hexcode")},
            }
        )
    order = {"train": 0, "validation": 1, "test": 2}
    return sorted(rows, key=lambda row: (order[row["split"]], row["hexcode"]))


def write_sample(rows: list[dict[str, Any]], output: Path) -> None:
    """Write the rows as one parquet file.

    Args:
        rows (`list[dict]`):
            What `build_rows` gives.
        output (`Path`):
            The file to write.
    """
    # One large page: the Huffman tables that all the JPEG files share then compress away.
    pq.write_table(
        pa.Table.from_pylist(rows, schema=SCHEMA),
        output,
        compression="zstd",
        compression_level=19,
        use_dictionary=["group", "subgroup", "vendor", "split"],
        data_page_size=16 << 20,
    )


def main(arguments: list[str] | None = None) -> None:
    """Make the file from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("drawings", type=Path)
    parser.add_argument("emojibase", type=Path)
    parser.add_argument("output", type=Path, nargs="?", default=SAMPLE_PATH)
    options = parser.parse_args(arguments)
    write_sample(build_rows(options.drawings, options.emojibase), options.output)


if __name__ == "__main__":
    main()
