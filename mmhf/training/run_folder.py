"""The folder of a run: where it lies, whether it may be used, where to go on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mmhf.errors import InputError
from mmhf.recipe import ResolvedRecipe, load_recipe
from mmhf.training.checkpoints import last_complete_checkpoint

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.json"
BAD_EXAMPLES_FILE = "bad_examples.csv"
REPORT_FILE = "report.html"
OUTPUT_ROOT = Path("outputs")

# Where a run lies and whom it reports to does not change what it computes.
_FREE_TO_CHANGE = (
    "training.output_dir",
    "training.report_to",
    "training.run_name",
    "training.disable_tqdm",
    "tracking.",
)


@dataclass(frozen=True)
class RunFolder:
    """A run folder that is ready to be trained in.

    Attributes:
        path (`Path`): The folder.
        checkpoint (`Path`, *optional*): Where an interrupted run goes on; None for a new run.
    """

    path: Path
    checkpoint: Path | None


def choose_run_dir(resolved: ResolvedRecipe, *, resume: bool) -> Path:
    """`training.output_dir`, or `outputs/RECIPE/DATE-TIME`; with `resume`, the latest of the latter that is unfinished.

    Raises:
        InputError: There is nothing to resume.
    """
    given = resolved.recipe.training.get("output_dir")
    if given is not None:
        return Path(given)
    root = OUTPUT_ROOT / resolved.name
    if not resume:
        return root / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    unfinished = [path.parent for path in root.glob(f"*/{RECIPE_FILE}") if not (path.parent / METRICS_FILE).exists()]
    if not unfinished:
        raise InputError(f"--resume: no unfinished run under {root}; leave --resume out to start one")
    return max(unfinished)


def open_run_folder(path: Path, resolved: ResolvedRecipe, *, allow_changes: bool = False) -> RunFolder:
    """Make a run folder, or find where the run in it stopped. Only one process may call this.

    Args:
        path (`Path`): The folder.
        resolved (`ResolvedRecipe`): The recipe about to be trained; written to the folder as `recipe.yaml`.
        allow_changes (`bool`, defaults to `False`): Go on although the recipe is not the one that the run began with.

    Raises:
        InputError: The folder holds a finished run, another recipe's run, or files that are no run.
    """
    recipe_file = path / RECIPE_FILE
    if not recipe_file.exists() and path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path} holds files but no run; choose another training.output_dir")
    if recipe_file.exists():
        if (path / METRICS_FILE).exists():
            raise InputError(
                f"{path} holds a finished run; choose another training.output_dir or remove the folder to train again"
            )
        _refuse_changes(path, resolved, allow_changes)
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / f".{RECIPE_FILE}"
    temporary.write_text(resolved.to_yaml(), encoding="utf-8")
    temporary.replace(recipe_file)
    checkpoint = last_complete_checkpoint(path)
    if checkpoint is not None:
        logger.info("Going on from %s", checkpoint)
    return RunFolder(path, checkpoint)


def _refuse_changes(path: Path, resolved: ResolvedRecipe, allow_changes: bool) -> None:
    changes = recipe_changes(load_recipe(path / RECIPE_FILE), resolved, free=_FREE_TO_CHANGE)
    if changes and not allow_changes:
        raise InputError(
            f"{path} holds a run of another recipe ({'; '.join(changes)}); choose another training.output_dir, "
            "or add --allow-changes to go on with the new recipe"
        )
    for change in changes:
        logger.warning("The recipe changed since the run began: %s", change)


def recipe_changes(old: ResolvedRecipe, new: ResolvedRecipe, *, free: Sequence[str] = ()) -> list[str]:
    """The settings in which two recipes differ, as `key: old → new`; `free` are beginnings of keys to pass over."""
    before, after = old.leaves(), new.leaves()
    return [
        f"{key}: {before.get(key, 'absent')} → {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(tuple(free))
    ]
