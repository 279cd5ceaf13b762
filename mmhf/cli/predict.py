"""Predict every row of a table or folder.

mmhf predict releases/fakeddit@v1.7 --input data/test.tsv --column image={id}.jpg --output predictions.csv

Start it as often as there are processors, or with `accelerate launch` for one process a GPU: they share the work.
Killed and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmhf.cli._table_job import add_job_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run folder, a release, or REPO@vX.Y")
    add_job_arguments(parser, output="CSV or parquet file")
    parser.add_argument("--threshold", type=float, help="two classes: predict the second one from this probability on")
    parser.add_argument(
        "--generation", action="append", default=[], metavar="KEY=VALUE", help="captions: such as num_beams=4"
    )
    parser.add_argument(
        "--text-embeddings",
        type=Path,
        help="table of text embeddings for these texts (mmhf embed --text), for models trained on one",
    )
    parser.add_argument(
        "--defuse-formulas",
        action="store_true",
        help="CSV for spreadsheets: put ' before texts that would run as formulas, such as =cmd",
    )
