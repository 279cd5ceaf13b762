"""`mmhf evaluate --predictions`: captions that were made elsewhere, measured as those of a captioner here."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from mmhf.cli._metrics_table import print_metrics
from mmhf.data.images import BadImageError, DataFolder
from mmhf.errors import InputError
from mmhf.evaluation.captions import (
    CaptionEvaluation,
    CaptionExample,
    CaptionFile,
    ClipScorer,
    caption_report_sections,
    evaluate_captions,
    read_caption_files,
    scores_of_image,
    small_image,
    spread_rows,
    write_caption_gallery,
)
from mmhf.evaluation.metrics_file import write_metrics
from mmhf.evaluation.report import write_report
from mmhf.files import METRICS_FILE, REPORT_FILE

logger = logging.getLogger(__name__)

MAX_GALLERY_IMAGES = 1000
_SPLIT = "captions"


def evaluate_caption_files(options: argparse.Namespace) -> None:
    """Measure a file of captions; write `metrics.json`, `report.html` and `captions.html` where `--output` says."""
    captions = read_caption_files(options.predictions, options.references)
    if captions.num_unused:
        logger.warning("%d images have references but no prediction; they are left out", captions.num_unused)
    if captions.num_empty_references:
        logger.warning("%d empty references are left out", captions.num_empty_references)
    paths = _image_paths(captions, options.images)
    evaluation = evaluate_captions(
        captions.predictions,
        captions.references,
        clip_scores=None if options.clip is None else _clip_scores(options.clip, captions, paths),
    )
    print_metrics(str(options.predictions), {_SPLIT: evaluation})
    if options.output is not None:
        _write(options, captions, paths, evaluation)
        logger.info("Written to %s", options.output)


def _image_paths(captions: CaptionFile, folder: Path | None) -> list[str | None]:
    """Where each image lies; None throughout without `--images`."""
    if folder is None:
        return [None] * len(captions.ids)
    if not folder.is_dir():
        raise InputError(f"--images {folder}: no such folder")
    names = [image or name for image, name in zip(captions.images, captions.ids, strict=True)]
    inside = DataFolder(folder)
    for name in names:
        if escape := inside.find_escape(name):
            raise InputError(f"--images {folder}: {escape}")
    return [inside.path_of(name) for name in names]


def _clip_scores(clip: str, captions: CaptionFile, paths: Sequence[str | None]) -> Sequence[float]:
    images = [path for path in paths if path is not None]
    if len(images) < len(captions.ids):
        raise InputError("--clip needs the images: name their folder with --images")
    try:
        scores = ClipScorer.from_pretrained(clip).score(images, captions.predictions)
    except BadImageError as error:
        raise InputError(f"--clip: an image cannot be read: {error}; leave its prediction out") from error
    return scores.tolist()


def _write(
    options: argparse.Namespace, captions: CaptionFile, paths: Sequence[str | None], evaluation: CaptionEvaluation
) -> None:
    shown = sorted(spread_rows(evaluation.per_image["rougeL"], count=MAX_GALLERY_IMAGES))
    examples = [
        CaptionExample(
            id=captions.ids[row],
            image=None if path is None else small_image(path),
            generated=captions.predictions[row],
            references=captions.references[row],
            scores=scores_of_image(evaluation, row),
        )
        for row in shown
        for path in (paths[row],)
    ]
    facts = {
        "captions": options.predictions,
        "references": options.references or options.predictions,
        "images with references but no prediction": captions.num_unused,
        "empty references, left out": captions.num_empty_references,
        "CLIP": options.clip or "none",
    }
    title, subtitle = f"Captions of {options.predictions.name}", f"image-captioning · {options.predictions}"
    write_caption_gallery(options.output / "captions.html", examples, title=title, subtitle=subtitle)
    write_report(
        options.output / REPORT_FILE, caption_report_sections({_SPLIT: evaluation}, facts=facts), title, subtitle
    )
    write_metrics(options.output / METRICS_FILE, {_SPLIT: evaluation.metrics})
