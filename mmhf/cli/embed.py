"""Embed the images and texts of a table or folder with a dual encoder; several processes share the work.

mmhf embed releases/flickr30k@v1.0 --input photos/ --output photos.parquet

Or embed texts with any text encoder, for fusion models that are trained on the table (`model.text.embeddings`); with a
recipe as input, all texts of its data:

mmhf embed pubmedbert --text --input recipes/dermatology/fusion.yaml --max-length 256 --output pubmedbert.parquet

Start it as often as there are processors, or with `accelerate launch` for one process a GPU; killed and started again,
it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets
import transformers

from mmhf.cli._table_job import add_job_arguments, job_settings, tell
from mmhf.errors import InputError
from mmhf.hub import resolve_model
from mmhf.inference.embedders import embed_table
from mmhf.inference.inputs import TableRows
from mmhf.inference.text_embedders import KNOWN_ENCODERS, TextEncoding, embed_texts, rows_of_texts
from mmhf.recipe import load_recipe
from mmhf.tasks import task_of

_OF_TEXT_ENCODERS = ("pooling", "prefix", "max_length")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(KNOWN_ENCODERS)
    parser.add_argument(
        "model",
        help="a run folder, a release, or REPO@vX.Y of a dual encoder; with --text a text encoder: "
        f"{names}, a Hub repository, a folder or pypi/NAME",
    )
    add_job_arguments(parser, output="parquet file")
    parser.add_argument("--images", action="store_true", help="embed images; absent with --texts: what the input has")
    parser.add_argument("--texts", action="store_true", help="embed texts")
    texts = parser.add_argument_group("texts with a text encoder, whose output the table holds as it is")
    texts.add_argument("--text", action="store_true", help="MODEL is a text encoder; --input may be a recipe")
    texts.add_argument("--pooling", help="mean, cls, last_token, max or pooler; absent: the encoder's usual one")
    texts.add_argument("--prefix", help="what stands before each text, such as an instruction")
    texts.add_argument("--max-length", type=int, help="tokens after which a text is cut; absent: the recipe's, or 512")


def run(options: argparse.Namespace) -> None:
    transformers.logging.disable_progress_bar()
    _check_kind(options)
    settings = job_settings(options)
    if options.text:
        given = {name: vars(options)[name] for name in _OF_TEXT_ENCODERS if vars(options)[name] is not None}
        rows: Path | TableRows = options.input
        if options.input.suffix in (".yaml", ".yml"):
            rows, max_length = _rows_of_recipe(options)
            given = {"max_length": max_length, **given}
        summary = embed_texts(options.model, rows, options.output, settings, encoding=TextEncoding(**given))
    else:
        modalities = [name for name, chosen in (("image", options.images), ("text", options.texts)) if chosen]
        model_dir = resolve_model(options.model).path
        summary = embed_table(model_dir, options.input, options.output, settings, modalities=modalities)
    tell(summary, ", ".join(f"{count:,} {modality}s" for modality, count in summary.embedded.items()))


def _check_kind(options: argparse.Namespace) -> None:
    if not options.text:
        for name in _OF_TEXT_ENCODERS:
            if vars(options)[name] is not None:
                raise InputError(f"--{name.replace('_', '-')} belongs to text encoders: add --text")
    elif options.images or options.texts or options.image_root is not None:
        raise InputError("--text embeds texts alone; leave --images, --texts and --image-root away")


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
