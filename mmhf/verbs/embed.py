"""Embed the images and texts of a table or folder with a dual encoder; several processes share the work."""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets
import transformers

from mmhf.errors import InputError
from mmhf.hub import resolve_model
from mmhf.inference.embedders import embed_table
from mmhf.inference.inputs import TableRows
from mmhf.inference.text_embedders import TextEncoding, embed_texts, rows_of_texts
from mmhf.recipe import load_recipe
from mmhf.recipe.shipped import is_recipe
from mmhf.tasks import task_of
from mmhf.verbs._table_job import job_settings, tell

_OF_TEXT_ENCODERS = ("pooling", "prefix", "max_length")


def run(options: argparse.Namespace) -> None:
    transformers.logging.disable_progress_bar()
    given = {name: vars(options)[name] for name in _OF_TEXT_ENCODERS if vars(options)[name] is not None}
    if given and not options.text:
        raise InputError(f"--{next(iter(given)).replace('_', '-')} belongs to text encoders: add --text")
    if options.text and (options.images or options.texts or options.image_root is not None):
        raise InputError("--text embeds texts alone; leave out --images, --texts and --image-root")
    if options.text and options.dimensions is not None:
        raise InputError("--dimensions belongs to dual encoders; leave out --text")
    settings = job_settings(options)
    if options.text:
        rows: Path | TableRows = options.input
        if is_recipe(options.input):
            rows, max_length = _rows_of_recipe(options)
            given = {"max_length": max_length, **given}
        summary = embed_texts(options.model, rows, options.output, settings, encoding=TextEncoding(**given))
    else:
        modalities = [name for name, chosen in (("image", options.images), ("text", options.texts)) if chosen]
        model_dir = resolve_model(options.model).path
        summary = embed_table(
            model_dir, options.input, options.output, settings, modalities=modalities, dimensions=options.dimensions
        )
    tell(summary, ", ".join(f"{count:,} {modality}s" for modality, count in summary.embedded.items()))


def _rows_of_recipe(options: argparse.Namespace) -> tuple[TableRows, int]:
    """The texts of all splits of a recipe's data, as training will see them, and how many tokens of them it keeps."""
    if options.column:
        raise InputError("--column: the recipe says which column has the texts")
    # The table that the recipe names may be the one that is being made.
    recipe = load_recipe(options.input, ["model.text.embeddings=null"]).recipe
    data = task_of(recipe).load_data(check_images=False)
    columns: dict[str, list[object]] = {name: [] for name in ("split", "row", "id", "text")}
    for split, rows in data.splits.items():
        if not isinstance(rows, datasets.Dataset) or "text" not in rows.column_names:
            raise InputError(f"{options.input}: its data is streamed, or has no texts; give a table of texts")
        columns["split"] += [split] * len(rows)
        for name in ("row", "id", "text"):
            columns[name] += rows[name][:]
    return rows_of_texts(str(options.input), columns, limit=options.limit), recipe.data.max_length
