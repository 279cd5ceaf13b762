"""Predict for every row of a table or folder; killed and started again, it goes on where it was.

mmhf predict releases/fakeddit@v1.7 --input data/test.tsv --column image={id}.jpg --output predictions.csv
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import transformers
import yaml

from mmhf.errors import InputError
from mmhf.hub import resolve_model
from mmhf.inference import PredictionSettings, predict_table

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run folder, a release, or REPO@vX.Y")
    parser.add_argument("--input", type=Path, required=True, help="CSV, TSV, JSONL or parquet table, or a folder")
    parser.add_argument("--output", type=Path, required=True, help="CSV or parquet file")
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=COLUMN", help="column of image or text, or {id}.jpg"
    )
    parser.add_argument("--image-root", type=Path, help="folder of the images; absent: the table's own")
    parser.add_argument("--limit", type=int, help="predict the first rows only")
    parser.add_argument("--threshold", type=float, help="two classes: probability from which the second is predicted")
    parser.add_argument(
        "--generation", action="append", default=[], metavar="KEY=VALUE", help="captions: such as num_beams=4"
    )
    parser.add_argument(
        "--text-embeddings",
        type=Path,
        help="models trained on such a table: one with these texts, by mmhf embed --text",
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; absent: the accelerator that is there")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")


def run(options: argparse.Namespace) -> None:
    transformers.logging.disable_progress_bar()
    settings = PredictionSettings(
        columns=parse_columns(options.column),
        image_root=options.image_root,
        limit=options.limit,
        threshold=options.threshold,
        generation=_generation(options.generation),
        text_embeddings=options.text_embeddings,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
        overwrite=options.overwrite,
    )
    summary = predict_table(resolve_model(options.model).path, options.input, options.output, settings)
    labels = ", ".join(f"{name} {count:,}" for name, count in Counter(summary.labels).most_common())
    what = labels or f"{summary.rows - summary.unpredicted:,} captions"
    logger.info("%s: %d rows in %.1f s (%s)", summary.output_path, summary.rows, summary.seconds, what)
    for reason, count in Counter(summary.errors).most_common():
        logger.info("  %d rows: %s", count, reason)


def parse_columns(pairs: list[str]) -> dict[str, str]:
    """`image=COLUMN` and `text=COLUMN`, as `--column` gives them."""
    columns = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or name not in ("image", "text"):
            raise InputError(f"--column {pair}: write image=COLUMN or text=COLUMN")
        columns[name] = column
    return columns


def _generation(pairs: list[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--generation {pair}: write KEY=VALUE, such as num_beams=4")
        options[name] = yaml.safe_load(value)
    return options
