"""Measure a run or a release on any split of any data, with the preprocessing that the model was trained with.

mmhf evaluate releases/quickstart@v0.1
mmhf evaluate releases/fakeddit@v1.6 recipes/fakeddit/v1.7.yaml data.limit=1000 --split test --output outputs/check
mmhf evaluate --predictions captions.jsonl --references captions_val2014.json --output outputs/check
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import TrainingArguments

from mmhf.cli._console import print_metrics
from mmhf.data.bad_examples import BadExampleLog
from mmhf.data.images import BadImageError, DataFolder
from mmhf.errors import InputError
from mmhf.evaluation.captions import (
    CaptionEvaluation,
    CaptionFile,
    ClipScorer,
    evaluate_captions,
    read_caption_files,
)
from mmhf.evaluation.report.captions import (
    MeasuredCaptions,
    scores_of_image,
    spread_rows,
    write_caption_gallery,
    write_captions_report,
)
from mmhf.evaluation.report.page import CaptionExample, small_image
from mmhf.evaluation.report.sections import RunFacts
from mmhf.files import BAD_EXAMPLES_FILE, RECIPE_FILE
from mmhf.hub.releases import resolve_model
from mmhf.recipe import load_recipe
from mmhf.tasks import task_of
from mmhf.tasks.feature_caching import evaluation_features

logger = logging.getLogger(__name__)

MAX_GALLERY_IMAGES = 1000
_CAPTIONS_SPLIT = "captions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a run folder, a release, or REPO@vX.Y")
    parser.add_argument(
        "recipe", nargs="?", help="recipe whose `data:` is used; absent: the one that trained the model"
    )
    parser.add_argument("overrides", nargs="*", help="key=value, such as data.path=data/other")
    parser.add_argument("--split", action="append", help="train, validation or test; may be repeated")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--output", type=Path, help="folder for metrics.json, plots and report.html")
    captions = parser.add_argument_group("captions made elsewhere, instead of a model")
    captions.add_argument("--predictions", type=Path, help="table with a caption an image, maybe with its references")
    captions.add_argument("--references", type=Path, help="table with their references, such as COCO's annotations")
    captions.add_argument("--images", type=Path, help="folder of their images, for the gallery and CLIPScore")
    captions.add_argument("--clip", help="a CLIP (folder or Hub repository) that measures CLIPScore")


def run(options: argparse.Namespace) -> None:
    transformers.logging.disable_progress_bar()
    _check_what_is_measured(options)
    if options.predictions is not None:
        _evaluate_caption_files(options)
        return
    if options.recipe is not None and "=" in options.recipe:
        options.overrides.insert(0, options.recipe)
        options.recipe = None
    resolved_model = resolve_model(options.model)
    resolved = load_recipe(options.recipe or resolved_model.path / RECIPE_FILE, options.overrides)
    task = task_of(resolved.recipe)
    model, processor = task.load_trained(resolved_model.path)
    splits = options.split or list(resolved.recipe.evaluation.splits)
    data = task.load_data(splits=splits, model=model)
    if options.split and (absent := [split for split in options.split if split not in data.splits]):
        raise InputError(f"--split {absent[0]}: the data has {', '.join(data.splits)}")

    with tempfile.TemporaryDirectory() as scratch:
        bad_examples = BadExampleLog(Path(scratch) / "bad_examples.log")
        bad_examples.extend(data.bad_examples)
        args = TrainingArguments(
            output_dir=scratch,
            per_device_eval_batch_size=options.batch_size,
            dataloader_num_workers=options.workers,
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=not sys.stderr.isatty(),
            remove_unused_columns=False,
        )
        measured = {}
        for split in data.splits:
            collator = task.collator(processor, split=split, seed=0, bad_examples=bad_examples)
            evaluator = task.make_evaluator(model, args, collator)
            evaluator.read_features(evaluation_features(task, model, args=args, processor=processor))
            measured[split] = task.measure(evaluator, data, split)
        print_metrics(options.model, measured)
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            bad_examples.write_csv(options.output / BAD_EXAMPLES_FILE)
            facts = {"model": options.model, **{f"rows, {split}": data.num_rows(split) for split in data.splits}}
            run = task.run_facts(options.output, resolved, trained=facts, bad_examples=bad_examples.read())
            task.write_report(run, measured)
            logger.info("Written to %s", options.output)


def _check_what_is_measured(options: argparse.Namespace) -> None:
    if options.predictions is None:
        for name in ("references", "images", "clip"):
            if vars(options)[name] is not None:
                raise InputError(f"--{name} belongs to captions made elsewhere: name their table with --predictions")
        if options.model is None:
            raise InputError(
                "name what to measure: a run folder or release, or a table of captions with --predictions; "
                "mmhf evaluate --help tells more"
            )
    elif options.model is not None:
        raise InputError(f"both a model ({options.model}) and --predictions are given; measure one at a time")
    elif options.split:
        raise InputError("--split chooses a model's data; a table of captions is measured as a whole")


def _evaluate_caption_files(options: argparse.Namespace) -> None:
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
    print_metrics(str(options.predictions), {_CAPTIONS_SPLIT: evaluation})
    if options.output is not None:
        _write_captions(options, captions, paths, evaluation)
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


def _clip_scores(clip: str, captions: CaptionFile, paths: Sequence[str | None]) -> list[float]:
    images = [path for path in paths if path is not None]
    if len(images) < len(captions.ids):
        raise InputError("--clip needs the images: name their folder with --images")
    try:
        scores = ClipScorer.from_pretrained(clip).score(images, captions.predictions)
    except BadImageError as error:
        raise InputError(f"--clip: an image cannot be read: {error}; leave its prediction out") from error
    return [float(score) for score in scores]


def _write_captions(
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
    run = RunFacts(folder=options.output, title=title, subtitle=subtitle, trained=facts)
    write_captions_report(run, {_CAPTIONS_SPLIT: MeasuredCaptions(evaluation)})
