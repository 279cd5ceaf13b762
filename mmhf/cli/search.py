"""Search the output of `mmhf embed` by text or image, and show the results.

mmhf search photos.parquet --text "a dog on a beach" --image holiday.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, help="parquet file that `mmhf embed` wrote")
    parser.add_argument("--text", action="append", default=[], help="what to look for; may be repeated")
    parser.add_argument(
        "--image", action="append", default=[], help="image file to find similar images for; may be repeated"
    )
    parser.add_argument("--among", choices=["image", "text"], help="absent: images, where there are any")
    parser.add_argument("--top", type=int, default=24, metavar="N", help="rows to find for each, default 24")
    parser.add_argument(
        "--approximate", action="store_true", help="look into the clusters around a query only, for millions of rows"
    )
    parser.add_argument("--output", type=Path, help="contact sheet; default: INDEX.html next to the index")
    parser.add_argument("--model", help="new location of the model, if it was moved")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; absent: the accelerator, if there is one")
