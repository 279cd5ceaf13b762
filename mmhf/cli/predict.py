"""Predict for every row of a table or folder.

mmhf predict releases/fakeddit@v1.7 --input data/test.tsv --column image={id}.jpg --output predictions.csv

Start it as often as there are processors, or with `accelerate launch` for one process a GPU: they share the work.
Killed and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import transformers
import yaml

from mmhf.cli._table_job import add_job_arguments, job_settings, tell
from mmhf.errors import InputError
from mmhf.hub import resolve_model
from mmhf.inference import predict_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run folder, a release, or REPO@vX.Y")
    add_job_arguments(parser, output="CSV or parquet file")
    parser.add_argument("--threshold", type=float, help="two classes: probability from which the second is predicted")
    parser.add_argument(
        "--generation", action="append", default=[], metavar="KEY=VALUE", help="captions: such as num_beams=4"
    )
    parser.add_argument(
        "--text-embeddings",
        type=Path,
        help="models trained on such a table: one with these texts, by mmhf embed --text",
    )
    parser.add_argument(
        "--defuse-formulas",
        action="store_true",
        help="CSV for a spreadsheet: put ' before texts that it would run, such as =cmd",
    )


def run(options: argparse.Namespace) -> None:
    transformers.logging.disable_progress_bar()
    summary = predict_table(
        resolve_model(options.model).path,
        options.input,
        options.output,
        job_settings(options),
        threshold=options.threshold,
        generation=_generation(options.generation),
        text_embeddings=options.text_embeddings,
        defuse_formulas=options.defuse_formulas,
    )
    labels = sorted(summary.labels.items(), key=lambda each: -each[1])
    made = ", ".join(f"{name} {count:,}" for name, count in labels)
    tell(summary, made or f"{summary.filled.get('caption', 0):,} captions")


def _generation(pairs: list[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--generation {pair}: write KEY=VALUE, such as num_beams=4")
        options[name] = yaml.safe_load(value)
    return options
