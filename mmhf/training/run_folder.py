"""The folder of a run: where it is, whether it may be used, where a stopped run resumes."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmhf.damage import COMPLETE_FILE, find_damage
from mmhf.errors import DamagedError, InputError
from mmhf.files import (
    BAD_EXAMPLES_LOG,
    CHANGES_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    read_json_object,
    write_json,
    write_text,
)
from mmhf.recipe import ResolvedRecipe, load_recipe
from mmhf.recipe.history import changed_sections, recipe_changes, with_history
from mmhf.training.checkpoints import complete_checkpoints, last_complete_checkpoint, step_of
from mmhf.training.position import condition_changes

logger = logging.getLogger(__name__)

OUTPUT_ROOT = Path("outputs")
_LOCK_FILE = ".lock"
_ENTRY = {"step", "changes", "sections"}


@dataclass(frozen=True)
class RunFolder:
    """A run folder that may be trained in.

    Attributes:
        path (`Path`): The folder; it need not exist yet.
        checkpoint (`Path`, *optional*): Where a stopped run resumes; None for a new run.
        is_finished (`bool`): Whether training and evaluation are done, so that only the release is missing.
        changes (`tuple[str, ...]`): What has changed since the checkpoint was written, as `key: old → new`.
    """

    path: Path
    checkpoint: Path | None = None
    is_finished: bool = False
    changes: tuple[str, ...] = ()

    @contextlib.contextmanager
    def claimed(self, resolved: ResolvedRecipe) -> Iterator[None]:
        """Make the folder, write `recipe.yaml` into it, and keep other processes from training in it.

        Raises:
            InputError: Another process trains in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / _LOCK_FILE, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise InputError(
                f"{self.path}: another process trains in it; choose another training.output_dir"
            ) from error
        with lock:
            if self.checkpoint is None:
                for name in (BAD_EXAMPLES_LOG, CHANGES_FILE):
                    (self.path / name).unlink(missing_ok=True)
            else:
                self._note_changes(self.checkpoint, resolved)
                (self.path / METRICS_FILE).unlink(missing_ok=True)  # of a finished run that is trained longer
            (self.path / COMPLETE_FILE).unlink(missing_ok=True)
            write_text(self.path / RECIPE_FILE, with_history(resolved, run_history(self.path)))
            yield

    def _note_changes(self, checkpoint: Path, resolved: ResolvedRecipe) -> None:
        """Write into the run's history what changes from now on, and which run the checkpoint is from."""
        run, step = checkpoint.parent, step_of(checkpoint)
        is_foreign = run.resolve() != self.path.resolve()
        # Steps that were lost with a damaged checkpoint are trained again, as the recipe says now.
        history = [{**entry, "step": min(entry["step"], step)} for entry in run_history(run)]
        if self.changes or is_foreign:
            sections = changed_sections(load_recipe(run / RECIPE_FILE), resolved)
            entry: dict[str, Any] = {"step": step, "changes": list(self.changes), "sections": sections}
            entry = {**entry, "continued_from": str(checkpoint)} if is_foreign else entry
            history += [] if entry in history else [entry]
        if history:
            write_json(self.path / CHANGES_FILE, {"history": history})


def steps_done(run_dir: Path) -> int:
    """Optimizer steps of the latest checkpoint of a run; 0 without one."""
    return max(map(step_of, complete_checkpoints(run_dir)), default=0)


def run_history(run_dir: Path) -> list[dict[str, Any]]:
    """Changes made to a run on the way: steps done by then, what changed, and the recipe's sections before that."""
    path = run_dir / CHANGES_FILE
    if not path.is_file():
        return []
    history = read_json_object(path).get("history")
    if not isinstance(history, list) or not all(isinstance(each, dict) and each.keys() >= _ENTRY for each in history):
        raise DamagedError(f"{path}: is damaged; restore it, or remove it and lose the run's history")
    return history


def choose_run_dir(resolved: ResolvedRecipe, *, resume: bool, recipe_file: str = RECIPE_FILE) -> Path:
    """`training.output_dir`, or the first of `outputs/RECIPE/DATE-TIME`, `DATE-TIME-2`, … that is free; with `resume`,
    the latest of these that is unfinished.

    Args:
        resolved (`ResolvedRecipe`): The recipe.
        resume (`bool`): Go on with one that was begun.
        recipe_file (`str`, defaults to `"recipe.yaml"`): What a folder that was begun holds.

    Raises:
        InputError: There is nothing to resume.
    """
    given = resolved.recipe.training.get("output_dir")
    if given is not None:
        return Path(given)
    root = OUTPUT_ROOT / resolved.name
    if not resume:
        now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        names = itertools.chain([now], (f"{now}-{number}" for number in itertools.count(2)))
        return next(root / name for name in names if not (root / name).exists())
    begun = [path for path in root.glob("*") if (path / recipe_file).is_file()]
    unfinished = [path for path in begun if not (path / METRICS_FILE).exists()]
    if not unfinished:
        raise InputError(f"--resume: no unfinished run under {root}; leave --resume out to start one")
    return max(unfinished)


def find_run_folder(
    path: Path,
    resolved: ResolvedRecipe,
    *,
    conditions: Mapping[str, str] | None = None,
    allow_changes: bool = False,
) -> RunFolder:
    """Find out whether a folder may be trained in, and where a run in it stopped. Changes nothing.

    A run that was stopped before its first checkpoint has nothing to resume: it may begin again with any recipe. A
    run without a checkpoint of its own resumes from `training.resume_from_checkpoint`, a checkpoint of another run.
    More epochs or steps of the last stage do not make another recipe: they train a run longer, a finished one, too.

    Args:
        path (`Path`): The folder.
        resolved (`ResolvedRecipe`): The recipe about to be trained.
        conditions (`Mapping[str, str]`, *optional*): Those of now, as `run_conditions` gives them.
        allow_changes (`bool`, defaults to `False`): Resume even if the run began with another recipe.

    Raises:
        InputError: The folder holds a finished run, another recipe's run, or files that are no run; or the checkpoint
            that the recipe names cannot be resumed from.
    """
    named = resolved.recipe.training.get("resume_from_checkpoint")
    if named is not None and Path(named).parent.resolve() == path.resolve():
        raise InputError(
            f"training.resume_from_checkpoint: {named} lies in training.output_dir, where training resumes from the "
            "latest checkpoint anyway; choose another training.output_dir to resume from an earlier one"
        )
    if not (path / RECIPE_FILE).exists():
        _check_free(path)
        return _named_checkpoint(path, resolved, conditions or {}, allow_changes)
    old = load_recipe(path / RECIPE_FILE)
    changes = recipe_changes(old, resolved)
    is_longer = _is_longer(old, resolved)
    if (path / METRICS_FILE).exists() and not is_longer:
        if changes or resolved.recipe.release is None:
            raise InputError(
                f"{path} holds a finished run; choose another training.output_dir or remove the folder to train "
                "again, or add --more EPOCHS to train it longer"
            )
        return RunFolder(path, is_finished=True)
    checkpoint = last_complete_checkpoint(path)
    if checkpoint is None:
        if (path / METRICS_FILE).exists():
            raise InputError(
                f"{path} holds a finished run without a checkpoint, so it cannot be trained longer; start from its "
                "weights in another training.output_dir"
            )
        return _named_checkpoint(path, resolved, conditions or {}, allow_changes)
    others = condition_changes(checkpoint, conditions or {})
    _refuse_changes(path, [*([] if is_longer else changes), *others], allow_changes)
    return RunFolder(path, checkpoint, changes=(*changes, *others))


def _check_free(path: Path) -> None:
    """Refuse a path without a run in it that something else is at."""
    if path.exists() and not path.is_dir():
        raise InputError(f"training.output_dir: {path} is a file; choose a folder")
    if path.is_dir() and any(entry.name != _LOCK_FILE for entry in path.iterdir()):
        if complete_checkpoints(path):
            raise DamagedError(
                f"{path}: {RECIPE_FILE} is missing, so nobody knows what its checkpoints belong to; restore it, or "
                "choose another training.output_dir"
            )
        raise InputError(f"{path} holds files but no run; choose another training.output_dir")


def _is_longer(old: ResolvedRecipe, new: ResolvedRecipe) -> bool:
    """Whether a recipe changes nothing but the length of its last stage, which grows."""
    before, after = old.leaves(), new.leaves()
    changed = {key.partition(":")[0] for key in recipe_changes(old, new)}
    last = f"stages.{len(new.recipe.stages or []) - 1}"
    lengths = {f"{last}.epochs", f"{last}.steps", "training.num_train_epochs", "training.max_steps"}
    unsaid = {"training.num_train_epochs": 3}  # TrainingArguments' own default
    numbers = [(before.get(key, unsaid.get(key)), after.get(key)) for key in changed]
    return (
        bool(changed)
        and changed <= lengths
        and all(
            isinstance(first, int | float) and isinstance(value, int | float) and value > first
            for first, value in numbers
        )
    )


def _named_checkpoint(
    path: Path, resolved: ResolvedRecipe, conditions: Mapping[str, str], allow_changes: bool
) -> RunFolder:
    """A new run; it resumes from `training.resume_from_checkpoint`, a checkpoint of another run, if that is given."""
    key, recipe = "training.resume_from_checkpoint", resolved.recipe
    given = recipe.training.get("resume_from_checkpoint")
    if given is None:
        return RunFolder(path)
    checkpoint = Path(given)
    run = checkpoint.parent
    if checkpoint not in complete_checkpoints(run) or not (run / RECIPE_FILE).is_file():
        raise InputError(f"{key}: {given} is no whole checkpoint of a run, such as outputs/x/checkpoint-500")
    if (damage := find_damage(checkpoint)) is not None:
        raise InputError(f"{key}: {given}: {damage}; name another checkpoint")
    for stage in recipe.stages or []:
        if stage.carry_best is not None:
            raise InputError(
                f"{key}: stage {stage.name!r} has carry_best, whose weights are kept in {run}; resume there"
            )
    old = load_recipe(run / RECIPE_FILE)
    changes, others = recipe_changes(old, resolved), condition_changes(checkpoint, conditions)
    _refuse_changes(run, [*([] if _is_longer(old, resolved) else changes), *others], allow_changes)
    return RunFolder(path, checkpoint, changes=(*changes, *others))


def _refuse_changes(run: Path, changes: Sequence[str], allow_changes: bool) -> None:
    if changes and not allow_changes:
        raise InputError(
            f"{run} holds a run of another recipe ({'; '.join(changes)}); choose another training.output_dir, "
            "or add --allow-changes to continue with the new recipe, which the run's history will record"
        )
    for change in changes:
        logger.warning("The recipe changed since the run began: %s", change)
