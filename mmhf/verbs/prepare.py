"""Pack a recipe's data into a folder that training reads from."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from mmhf.data.preparing import JPEG_QUALITY, prepare
from mmhf.data.table import Reading
from mmhf.errors import InputError
from mmhf.hub.hub_errors import use_caches_if_hub_is_silent
from mmhf.recipe import load_recipe
from mmhf.recipe.caption_data_sections import CaptionHubSection, WebDatasetSection
from mmhf.recipe.data_sections import HubDataSection
from mmhf.tasks import task_of

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    """Recipe, data, folder."""
    recipe = load_recipe(options.recipe, options.overrides).recipe
    output = options.output or recipe.data.prepared
    if output is None:
        raise InputError("mmhf prepare: name the folder to fill with -o")
    section = recipe.data.model_copy(update={"prepared": None})
    is_streamed = isinstance(section, HubDataSection | CaptionHubSection) and section.streaming
    if is_streamed or isinstance(section, WebDatasetSection):
        raise InputError(
            f"data.source {section.source!r}: streams are read in order already; there is nothing to pack"
        )
    task = task_of(recipe.model_copy(update={"data": section}))
    if section.is_on_hub():
        use_caches_if_hub_is_silent()
    data = task.load_data()
    reading = Reading(
        label=recipe.reads_labels,
        text=recipe.reads_texts,
        extra_columns=tuple(task.extra_columns()),
        required_columns=tuple(task.required_columns()),
    )
    side = task.least_side()
    folder = prepare(data, section, Path(output), reading=reading, side=side, overwrite=options.overwrite)
    size = sum(size for size, _ in folder.facts["files"].values())
    rows = ", ".join(f"{split} {data.num_rows(split):,}" for split in folder.splits)
    logger.info("%s: %s, %.1f MB", folder.path, rows, size / 1e6)
    if side is None:
        logger.info("Images are kept as they are; data.exact=false packs them at the size that the model needs")
    else:
        logger.info("Images of more than %d pixels are scaled to that, as JPEG of quality %d", side, JPEG_QUALITY)
    logger.info(
        "Next: mmhf train %s data.prepared=%s%s", options.recipe, output, "" if side is None else " data.exact=false"
    )
