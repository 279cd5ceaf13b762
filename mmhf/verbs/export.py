"""Write a model as graphs that run without mmhf."""

from __future__ import annotations

import argparse
import logging

import transformers

from mmhf.errors import InputError
from mmhf.export.folder import export_model, refuse_existing_folder
from mmhf.export.formats import FORMATS
from mmhf.files import RECIPE_FILE
from mmhf.hub import resolve_model
from mmhf.recipe import load_recipe

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    refuse_existing_folder(options.output)
    if options.int8 and options.format != "onnx":
        raise InputError("--int8: is for --format onnx")
    if options.overrides and not options.int8:
        raise InputError(f"{options.overrides[0]}: says where the data for --int8 is, which is not asked for")
    transformers.logging.disable_progress_bar()
    path = resolve_model(options.model).path
    export_model(
        path,
        options.output,
        format=options.format,
        input_path=options.input,
        name=options.model,
        int8_data=load_recipe(path / RECIPE_FILE, options.overrides) if options.int8 else None,
    )
    program = FORMATS[options.format].runner_file
    hint = "" if program is None else f"; try python {options.output / program} photo.jpg"
    logger.info("%s: written%s", options.output, hint)
