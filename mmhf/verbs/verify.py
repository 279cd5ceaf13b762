"""Check a release: the hash of each file, and its numbers by evaluating it again."""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard

from mmhf.errors import InputError
from mmhf.files import METRICS_FILE, RECIPE_FILE, read_json_object
from mmhf.hub.manifest import verify_release
from mmhf.hub.releases import resolve_model
from mmhf.recipe import load_recipe
from mmhf.tasks import task_of
from mmhf.verbs._metrics_table import print_metrics
from mmhf.verbs.evaluate import evaluate

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    resolved = resolve_model(options.model)
    release = verify_release(resolved.path, exactly=True)
    logger.info("%s: all %d files have the hashes they were released with", options.model, len(release.files))
    claimed = _numbers_of_card(resolved.path, options.split)
    with tempfile.TemporaryDirectory() as scratch:
        again = evaluate(
            resolved.path,
            overrides=options.overrides,
            splits=options.split,
            batch_size=options.batch_size,
            output=scratch,
        )
        measured: dict[str, float] = read_json_object(Path(scratch) / METRICS_FILE)
    print_metrics(str(resolved.path), again)
    wrong = {
        name: (value, measured.get(name))
        for name, value in claimed.items()
        if (found := measured.get(name)) is None
        or not math.isclose(value, found, rel_tol=0.0, abs_tol=options.tolerance)
    }
    if not wrong:
        logger.info("%s: all %d numbers of its card are confirmed", options.model, len(claimed))
        return
    first, (said, found) = next(iter(wrong.items()))
    raise InputError(
        f"{options.model}: {len(wrong)} of {len(claimed)} numbers are not confirmed, such as {first}: "
        f"{said:.6g} on the card, {'none' if found is None else f'{found:.6g}'} now"
        f"{_why(resolved.path, options, release.extra.get('data_fingerprint') or {})}"
    )


def _numbers_of_card(path: Path, splits: list[str] | None) -> dict[str, float]:
    """Numbers of the card's model-index as metrics.json names them."""
    results = ModelCard.load(path / "README.md").data.eval_results or []
    numbers = {f"{result.dataset_split}_{result.metric_type}": float(result.metric_value) for result in results}
    if splits:
        numbers = {name: value for name, value in numbers.items() if name.partition("_")[0] in splits}
    if not numbers:
        raise InputError(f"{path}: its card has no numbers{f' of {splits}' if splits else ''} to confirm")
    return numbers


def _why(path: Path, options: argparse.Namespace, released: dict[str, str]) -> str:
    """Whether the data has changed, which explains most differences."""
    recipe = load_recipe(path / RECIPE_FILE, options.overrides).recipe
    splits = options.split or recipe.evaluation.splits
    found = task_of(recipe).load_data(splits=splits, check_images=False).fingerprint()
    changed = [split for split, value in found.items() if released.get(split) not in (None, value)]
    return f"; the rows of {', '.join(changed)} are not those it was released with" if changed else ""
