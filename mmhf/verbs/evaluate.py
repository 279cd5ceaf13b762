"""Measure a run or a release on any split of any data, with the preprocessing that the model was trained with."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, TrainingArguments

from mmhf.damage import COMPLETE_FILE, is_run_file, mark_complete
from mmhf.data.bad_examples import BadExampleLog
from mmhf.data.clip_benchmark import read_clip_benchmark
from mmhf.data.images import BadImageError, DataFolder
from mmhf.data.loading import LoadedData
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
from mmhf.evaluation.results import read_baselines
from mmhf.files import (
    BAD_EXAMPLES_FILE,
    EVALUATION_FILE,
    LINEAGE_FILE,
    RELEASE_FILE,
    read_json_object,
    recipe_of_model,
    write_json,
)
from mmhf.hub.releases import resolve_model
from mmhf.inference.views import ChosenViews, set_views
from mmhf.recipe import ResolvedRecipe, load_recipe, recipe_from_dict
from mmhf.tasks import AnyTask, Measured, task_of
from mmhf.tasks.feature_caching import evaluation_features
from mmhf.verbs._metrics_table import print_metrics
from mmhf.verbs.own_data import OwnData, with_own_data
from mmhf.verbs.run import Run

logger = logging.getLogger(__name__)

MAX_GALLERY_IMAGES = 1000
_CAPTIONS_SPLIT = "captions"


def run(options: argparse.Namespace) -> None:
    _check_what_is_measured(options)
    if options.predictions is not None:
        _evaluate_caption_files(options)
        return
    if options.clip_benchmark:
        measured = evaluate_clip_benchmark(
            options.model,
            options.clip_benchmark,
            batch_size=options.batch_size,
            workers=options.workers,
            output=options.output,
        )
        print_metrics(options.model, measured)
        return
    if options.recipe is not None and "=" in options.recipe:
        options.overrides.insert(0, options.recipe)
        options.recipe = None
    measured = evaluate(
        options.model,
        options.recipe,
        overrides=options.overrides,
        splits=options.split,
        batch_size=options.batch_size,
        workers=options.workers,
        output=options.output,
        views=options.views,
    )
    print_metrics(options.model, measured)


def evaluate(
    model: str | Path | Run,
    data: str | Path | OwnData | None = None,
    *,
    overrides: Sequence[str] = (),
    splits: Sequence[str] | None = None,
    batch_size: int = 32,
    workers: int = 0,
    output: str | Path | None = None,
    views: ChosenViews | None = None,
) -> dict[str, Measured]:
    """Measure a model on any split of any data, with the preprocessing that it was trained with.

    Args:
        model (`str`, `Path` or [`Run`]): A run, its folder, a checkpoint, a release, or `REPO@vX.Y`.
        data (*optional*): A recipe whose `data:` is used, or a DataFrame, data set or list of dicts with the columns
            that the model was trained on, which is measured as the split `test`; absent: the model's own data.
        overrides (`Sequence[str]`): Such as `data.path=data/other`.
        splits (`Sequence[str]`, *optional*): Those to measure; absent: the recipe's.
        batch_size (`int`, defaults to 32): Rows at once.
        workers (`int`, defaults to 0): Processes that decode images.
        output (`str` or `Path`, *optional*): A folder for `metrics.json`, plots and `report.html`.
        views (`Mapping[str, Any]` or `"off"`, *optional*): Classifiers only: what answers are averaged over, such as
            `{"horizontal_flip": True}`, or `"off"` for the image as it is; absent: what the model was saved with.

    Returns:
        `dict[str, Measured]`: What was measured of each split; `.metrics` has the numbers.

    Raises:
        InputError: The model, the data or a split is not there.
    """
    transformers.logging.disable_progress_bar()
    name = str(model.folder if isinstance(model, Run) else model)
    model_dir = resolve_model(name).path
    resolved = _recipe_of(model_dir, data, overrides)
    if data is not None and not isinstance(data, str | Path):
        splits = ["test"]
    task = task_of(resolved.recipe)
    trained, processor = task.load_trained(model_dir)
    if views is not None:
        set_views(trained, processor, views)
    loaded = _load_data(task, trained, splits, usual=resolved.recipe.evaluation.splits)
    if splits and (absent := [split for split in splits if split not in loaded.splits]):
        raise InputError(f"--split {absent[0]}: the data has {', '.join(loaded.splits)}")

    with tempfile.TemporaryDirectory() as scratch:
        bad_examples = BadExampleLog(Path(scratch) / "bad_examples.log")
        bad_examples.extend(loaded.bad_examples)
        args = _evaluation_arguments(scratch, batch_size=batch_size, workers=workers)
        measured = {}
        for split in loaded.splits:
            collator = task.collator(processor, split=split, seed=0, bad_examples=bad_examples)
            evaluator = task.make_evaluator(trained, args, collator)
            evaluator.read_features(evaluation_features(task, trained, args=args, processor=processor))
            measured[split] = task.measure(evaluator, loaded, split)
        measured = _beside_baselines(measured, model_dir, loaded)
        if output is not None:
            facts = {"model": name, **{f"rows, {split}": loaded.num_rows(split) for split in loaded.splits}}
            bad = {"bad_examples": bad_examples.read(), "empty_texts": loaded.empty_texts}
            _write_report(task, task.run_facts(Path(output), resolved, trained=facts, **bad), measured, bad_examples)
    return measured


def evaluate_clip_benchmark(
    model: str | Path | Run,
    folders: Sequence[str | Path],
    *,
    batch_size: int = 32,
    workers: int = 0,
    output: str | Path | None = None,
) -> dict[str, Measured]:
    """Measure a dual encoder on data sets in CLIP_benchmark's layout, as CLIP_benchmark does.

    Args:
        model (`str`, `Path` or [`Run`]): A run, its folder, a release, or `REPO@vX.Y`.
        folders (`Sequence[str | Path]`): The data sets; see [`read_clip_benchmark`].
        batch_size (`int`, defaults to 32): Rows at once.
        workers (`int`, defaults to 0): Processes that decode images.
        output (`str` or `Path`, *optional*): A folder for `DATASET_TASK.json`, as CLIP_benchmark writes its results,
            and `bad_examples.csv`.

    Returns:
        `dict[str, Measured]`: By the names of the folders.

    Raises:
        InputError: The model is none of images and texts, or a data set is not in that layout.
    """
    transformers.logging.disable_progress_bar()
    name = str(model.folder if isinstance(model, Run) else model)
    model_dir = resolve_model(name).path
    task = task_of(load_recipe(recipe_of_model(model_dir)).recipe)
    trained, processor = task.load_trained(model_dir)
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as scratch:
        args = _evaluation_arguments(scratch, batch_size=batch_size, workers=workers)
        bad_examples = BadExampleLog(Path(scratch) / "bad_examples.log")
        for folder in folders:
            data = read_clip_benchmark(folder)
            bad_examples.extend(data.bad_examples)
            collator = task.collator(processor, split=data.name, seed=0, bad_examples=bad_examples)
            evaluator = task.make_evaluator(trained, args, collator)
            found = task.measure_clip_benchmark(evaluator, data, processor)
            measured[data.name] = found
            if output is not None:
                repo, _, version = name.partition("@")
                result = found.as_json(data.name, model=Path(repo).name, pretrained=version)
                write_json(Path(output) / f"{data.name}_{found.task}.json", result)
        if output is not None:
            bad_examples.write_csv(Path(output) / BAD_EXAMPLES_FILE)
    return measured


def _evaluation_arguments(folder: str, *, batch_size: int, workers: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        per_device_eval_batch_size=batch_size,
        dataloader_num_workers=workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
    )


def _write_report(
    task: AnyTask, facts: RunFacts, measured: Mapping[str, Measured], bad_examples: BadExampleLog
) -> None:
    """Write the report and the list of bad rows to the folder that the facts name."""
    facts.folder.mkdir(parents=True, exist_ok=True)
    bad_examples.write_csv(facts.folder / BAD_EXAMPLES_FILE)
    task.write_report(facts, measured)
    if (facts.folder / COMPLETE_FILE).is_file():  # the run's own folder, whose files were just checked
        mark_complete(facts.folder, is_run_file)
    logger.info("Written to %s", facts.folder)


def _recipe_of(model_dir: Path, data: str | Path | OwnData | None, overrides: Sequence[str]) -> ResolvedRecipe:
    """The recipe whose data is measured: another one, or the model's, which may be given data of the user's own."""
    if isinstance(data, str | Path):
        return load_recipe(data, overrides)
    resolved = load_recipe(recipe_of_model(model_dir), overrides)
    if data is None:
        return resolved
    return recipe_from_dict(with_own_data(resolved.recipe.model_dump(), {"test": data}), name=resolved.name)


def _beside_baselines(measured: Mapping[str, Any], model_dir: Path, loaded: LoadedData) -> dict[str, Measured]:
    """Put the baselines that training measured beside the numbers of the splits that are the same rows."""
    known, rows = read_baselines(model_dir / EVALUATION_FILE), {}
    if known and (model_dir / LINEAGE_FILE).is_file():
        rows = read_json_object(model_dir / LINEAGE_FILE).get("data_fingerprint", {})
    elif known and (model_dir / RELEASE_FILE).is_file():
        rows = read_json_object(model_dir / RELEASE_FILE).get("extra", {}).get("data_fingerprint", {})
    present = loaded.fingerprint() if rows else {}
    same = {split for split in known if split in present and present[split] == rows.get(split)}
    return {
        split: replace(each, baselines=known[split]) if split in same else each for split, each in measured.items()
    }


def _load_data(
    task: AnyTask, model: PreTrainedModel, splits: Sequence[str] | None, *, usual: Sequence[str]
) -> LoadedData:
    """The splits that are asked for, or those of the usual ones that the data has."""
    if splits is not None:
        return task.load_data(splits=splits, model=model)
    try:
        return task.load_data(splits=usual, model=model)
    except InputError:  # one of them is not there
        loaded = task.load_data(model=model)
        loaded.splits = {split: rows for split, rows in loaded.splits.items() if split in usual}
        if not loaded.splits:
            raise
        return loaded


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
    elif options.clip_benchmark:
        raise InputError("--clip-benchmark is for a dual encoder, not for a table of captions")
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
    print_metrics(str(options.predictions), {_CAPTIONS_SPLIT: MeasuredCaptions(evaluation)})
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
    title, subtitle = f"Captions of {options.predictions.name}", "image-captioning"
    write_caption_gallery(options.output / "captions.html", examples, title=title, subtitle=subtitle)
    run = RunFacts(folder=options.output, title=title, subtitle=subtitle, trained=facts)
    write_captions_report(run, {_CAPTIONS_SPLIT: MeasuredCaptions(evaluation)})
