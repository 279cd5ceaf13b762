"""Embed the images and texts of a table or folder with a dual encoder; several processes share the work.

mmhf embed releases/flickr30k@v1.0 --input photos/ --output photos.parquet

Start it as often as there are processors, or with `accelerate launch` for one process a GPU; killed and started again,
it goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections import Counter
from pathlib import Path

import torch
import transformers

from mmhf.cli.predict import parse_columns
from mmhf.hub import resolve_model
from mmhf.inference.embedding import EmbeddingSettings, embed_table

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run folder, a release, or REPO@vX.Y of a dual encoder")
    parser.add_argument("--input", type=Path, required=True, help="CSV, TSV, JSONL or parquet table, or a folder")
    parser.add_argument("--output", type=Path, required=True, help="parquet file")
    parser.add_argument("--images", action="store_true", help="embed images; absent with --texts: what the input has")
    parser.add_argument("--texts", action="store_true", help="embed texts")
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=COLUMN", help="column of image or text, or {id}.jpg"
    )
    parser.add_argument("--image-root", type=Path, help="folder of the images; absent: the table's own")
    parser.add_argument("--limit", type=int, help="embed the first rows only")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images, for each process")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; absent: the accelerator that is there")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that was made from other inputs")


def run(options: argparse.Namespace) -> None:
    transformers.logging.disable_progress_bar()
    settings = EmbeddingSettings(
        modalities=[name for name, chosen in (("image", options.images), ("text", options.texts)) if chosen],
        columns=parse_columns(options.column),
        image_root=options.image_root,
        limit=options.limit,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device or _own_device(),
        overwrite=options.overwrite,
    )
    summary = embed_table(resolve_model(options.model).path, options.input, options.output, settings)
    embedded = ", ".join(f"{count:,} {modality}s" for modality, count in summary.embedded.items())
    logger.info(
        "%s: %d rows (%s), %d of them here in %.1f s",
        summary.output_path,
        summary.rows,
        embedded,
        summary.rows_here,
        summary.seconds,
    )
    for reason, count in Counter(summary.errors).most_common():
        logger.info("  %d rows: %s", count, reason)


def _own_device() -> str | None:
    """The GPU that a launcher meant this process to have."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or "LOCAL_RANK" not in os.environ:
        return None
    return f"{accelerator.type}:{int(os.environ['LOCAL_RANK']) % torch.accelerator.device_count()}"
