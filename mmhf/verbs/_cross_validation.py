"""k-fold cross-validation: an ordinary run for each fold, and what they say together."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
from accelerate.utils.memory import clear_device_cache

from mmhf.errors import InputError
from mmhf.evaluation.cross_validation import FoldMetric, summarise_folds, write_cross_validation
from mmhf.evaluation.results import read_baselines
from mmhf.files import (
    EVALUATION_FILE,
    FOLDS_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    read_json_object,
    whole_file,
)
from mmhf.inference.outputs import open_writer
from mmhf.parallel import from_first, rank
from mmhf.recipe import ResolvedRecipe, load_recipe, recipe_from_dict
from mmhf.recipe.cross_validation import check_folds, fold_override
from mmhf.recipe.history import recipe_changes
from mmhf.recipe.row_sections import FoldSection
from mmhf.training.arguments import start_process_group, training_arguments
from mmhf.training.run_folder import choose_run_dir
from mmhf.verbs._metrics_table import print_folds
from mmhf.verbs.run import FOLD_FOLDER, Run

logger = logging.getLogger(__name__)

_OWN_FILES = (METRICS_FILE, REPORT_FILE, FOLDS_FILE, PREDICTIONS_FILE)


def cross_validate(
    resolved: ResolvedRecipe, num_folds: int, train_fold: Callable[[list[str]], Run], *, resume: bool
) -> Run:
    """Train the folds that are not finished, one after the other, and write what all of them say.

    Args:
        resolved (`ResolvedRecipe`): The recipe.
        num_folds (`int`): How many folds.
        train_fold (`Callable`): Trains or resumes a run of the recipe with overrides.
        resume (`bool`): Go on with the latest unfinished cross-validation of this recipe.

    Returns:
        [`Run`]: The folder of the cross-validation.

    Raises:
        InputError: The recipe cannot be cross-validated, or the folder holds something else.
    """
    check_folds(resolved.recipe, num_folds)
    start_process_group(training_arguments(resolved.recipe, str(resolved.name), has_validation=True))
    folder, finished = from_first(lambda: _find_place(resolved, num_folds, resume=resume))
    logger.info("Cross-validation of %d folds in %s", num_folds, folder)
    logger.info("The rows of training and validation are cut anew for it, whatever splits the data has")
    for number in range(1, num_folds + 1):
        if number in finished:
            logger.info("Fold %d of %d is finished", number, num_folds)
            continue
        logger.info("Fold %d of %d", number, num_folds)
        path = json.dumps(str(folder / FOLD_FOLDER.format(number)))
        train_fold([fold_override(number, num_folds), f"training.output_dir={path}"])
        clear_device_cache(garbage_collection=True)
    run = Run(folder)
    if rank() == 0:
        print_folds(f"{resolved.name}, {num_folds} folds", _summarise(run, resolved))
        logger.info("Folder: %s", folder)
        logger.info("Report: %s", run.report)
    return run


def write_fold_predictions(folder: Path, predictions: pa.Table | None, fold: FoldSection) -> None:
    """Write what a fold's model said of its validation rows into the fold's folder; nothing where that is not kept."""
    if predictions is not None:
        numbers = pa.array([fold.number] * len(predictions), pa.int64())
        table = predictions.add_column(0, "fold", numbers)
        if "abstained" in table.column_names:  # some folds may never abstain
            table = table.drop_columns("abstained")
        with whole_file(folder / PREDICTIONS_FILE) as temporary:
            writer = open_writer(temporary, table.schema, suffix=".csv")
            writer.write_table(table)
            writer.close()


def _find_place(resolved: ResolvedRecipe, num_folds: int, *, resume: bool) -> tuple[Path, list[int]]:
    """The folder, and the folds that are finished in it."""
    folder = choose_run_dir(resolved, resume=resume, recipe_file=f"{FOLD_FOLDER.format(1)}/{RECIPE_FILE}")
    way_out = "choose another training.output_dir"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"training.output_dir: {folder} is a file; choose a folder")
    if (folder / RECIPE_FILE).exists():
        raise InputError(f"{folder} holds a run without folds; {way_out}")
    finished = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        named = re.fullmatch(FOLD_FOLDER.format(r"(\d+)"), path.name)
        if named is None and not path.name.startswith(".") and path.name not in _OWN_FILES:
            raise InputError(f"{folder} holds {path.name} and no cross-validation; {way_out}")
        if named is None or not (path / RECIPE_FILE).is_file():
            continue
        values = resolved.recipe.model_dump()
        values["data"]["fold"] = {"number": int(named[1]), "of": num_folds}
        old = load_recipe(path / RECIPE_FILE)
        if old.recipe.data.fold is None or old.recipe.data.fold.of != num_folds:
            raise InputError(f"{folder} holds a cross-validation of other folds, or none; {way_out}")
        if (path / METRICS_FILE).is_file():
            changes = recipe_changes(old, recipe_from_dict(values, name=resolved.name))
            if changes:
                raise InputError(f"{path} holds a finished fold of another recipe ({'; '.join(changes)}); {way_out}")
            finished.append(int(named[1]))
    if (folder / METRICS_FILE).is_file():
        raise InputError(f"{folder} holds a finished cross-validation; {way_out}")
    return folder, finished


def _summarise(run: Run, resolved: ResolvedRecipe) -> dict[str, FoldMetric]:
    folds = [fold.folder for fold in run.folds]
    metrics = summarise_folds([fold.metrics for fold in run.folds])
    has_predictions = _join_tables([fold / PREDICTIONS_FILE for fold in folds], run.folder / PREDICTIONS_FILE)
    notes = [
        f"Mean and standard deviation (n - 1) over {len(folds)} folds. The rows of training and validation were put "
        "together and cut into folds; each was the validation split of one run, and the others its training split.",
        "The rows of the test split are the same in each run: over the folds its numbers vary with the training rows "
        "alone. What a run chooses on its validation split (the best checkpoint, thresholds, a temperature) makes the "
        "numbers of that split look better than they are.",
        *([f"{PREDICTIONS_FILE} has what was said of each row by the model that did not see it."] * has_predictions),
    ]
    details = read_json_object(folds[0] / EVALUATION_FILE)
    write_cross_validation(
        run.folder,
        metrics,
        title=str(resolved.name),
        notes=notes,
        protocols=details["protocols"],
        baselines=[read_baselines(fold / EVALUATION_FILE) for fold in folds],
        recipe_yaml=resolved.to_yaml(),
    )
    return metrics


def _join_tables(paths: Sequence[Path], output: Path) -> bool:
    """Write tables of the same columns one below the other; returns whether there are any."""
    if not all(path.is_file() for path in paths):
        return False
    with whole_file(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as joined:
        for number, path in enumerate(paths):
            with path.open(encoding="utf-8", newline="") as file:
                if number:
                    next(csv.reader(file))
                joined.write(file.read())
    return True
