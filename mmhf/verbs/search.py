"""Search the output of `mmhf embed` by text or image, and show the results."""

from __future__ import annotations

import argparse
import logging

import torch
import transformers
from rich.console import Console
from rich.table import Table

from mmhf.errors import InputError
from mmhf.evaluation.report.retrieval import write_contact_sheet
from mmhf.hub import resolve_model
from mmhf.inference.embedders import load_embedder
from mmhf.inference.loading import choose_device
from mmhf.inference.search import EmbeddingIndex, Hit, embed_query

logger = logging.getLogger(__name__)

_SHOWN = 10


def run(options: argparse.Namespace) -> None:
    """Index, model, queries; the best on the terminal, all on the contact sheet."""
    if not options.text and not options.image:
        raise InputError("give --text or --image: what to look for")
    if options.top < 1:
        raise InputError(f"--top {options.top}: expected 1 or more")
    transformers.logging.disable_progress_bar()
    index = EmbeddingIndex(options.index)
    model_dir = resolve_model(options.model).path if options.model else index.model_dir
    index.check_model(model_dir)
    embedder = load_embedder(model_dir, device=choose_device(options.device))
    queries = {f"“{text}”": embed_query(embedder, text=text) for text in options.text}
    queries |= {f"like {image}": embed_query(embedder, image=image) for image in options.image}
    hits = index.search_all(
        torch.stack(list(queries.values())), among=options.among, top=options.top, approximate=options.approximate
    )
    found = dict(zip(queries, hits, strict=True))
    if index.recall is not None:
        logger.info("Approximate: it finds %.1f %% of the 10 nearest (of rows of its own)", 100 * index.recall)
    for name, of_query in found.items():
        _print_hits(name, of_query)
    sheet = options.output or options.index.with_suffix(".html")
    write_contact_sheet(sheet, found, title=f"Search in {options.index.name}", text_column=index.text_column)
    logger.info("Contact sheet: %s", sheet)


def _print_hits(name: str, hits: list[Hit]) -> None:
    shown = [column for column in (hits[0].values if hits else {}) if column != "error"][:3]
    table = Table("row", "similarity", *shown, title=name)
    for hit in hits[:_SHOWN]:
        table.add_row(str(hit.row), f"{hit.score:.4f}", *(str(hit.values[column]) for column in shown))
    Console().print(table)
