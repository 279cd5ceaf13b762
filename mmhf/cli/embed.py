"""Embed the images and texts of a table or folder with a dual encoder; several processes share the work.

mmhf embed releases/flickr30k@v1.0 --input photos/ --output photos.parquet

Or embed texts with any text encoder, for fusion models that are trained on the table (`model.text.embeddings`); with a
recipe as input, all texts of its data:

mmhf embed pubmedbert --text --input dermatology/fusion --max-length 256 --output pubmedbert.parquet

Start it as often as there are processors, or with `accelerate launch` for one process a GPU; killed and started again,
it goes on where it was.
"""

from __future__ import annotations

import argparse

from mmhf.cli._table_job import add_job_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="a run folder, a release, or REPO@vX.Y of a dual encoder; with --text a text encoder: "
        "pubmedbert, sapbert, biosyn, qwen, minilm, a Hub repository, a folder or pypi/NAME",
    )
    add_job_arguments(parser, output="parquet file")
    parser.add_argument("--images", action="store_true", help="embed images; absent with --texts: what the input has")
    parser.add_argument("--texts", action="store_true", help="embed texts")
    texts = parser.add_argument_group("texts with a text encoder, whose output the table holds as it is")
    texts.add_argument("--text", action="store_true", help="MODEL is a text encoder; --input may be a recipe")
    texts.add_argument("--pooling", help="mean, cls, last_token, max or pooler; absent: the encoder's usual one")
    texts.add_argument("--prefix", help="put before each text, such as an instruction")
    texts.add_argument(
        "--max-length", type=int, help="maximum length of a text in tokens; absent: the recipe's, or 512"
    )
