"""The options that `predict` and `embed` have in common."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_job_arguments(parser: argparse.ArgumentParser, *, output: str) -> None:
    """Add the options of a job over a table.

    Args:
        parser (`argparse.ArgumentParser`): The verb's.
        output (`str`): What the output is, for the help.
    """
    parser.add_argument("--input", type=Path, required=True, help="CSV, TSV, JSONL or parquet table, or a folder")
    parser.add_argument("--output", type=Path, required=True, help=output)
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=COLUMN", help="column of image or text, or {id}.jpg"
    )
    parser.add_argument("--image-root", type=Path, help="folder of the images; absent: the table's own")
    parser.add_argument("--limit", type=int, help="the first rows only")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images, for each process")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; absent: the accelerator, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that was made from other inputs")
