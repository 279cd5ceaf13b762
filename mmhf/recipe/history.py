"""Changes that were made to a run under way: its recipe records them, so that it trains the same again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmhf.recipe.resolve import ResolvedRecipe, recipe_from_dict

HISTORY = "history"

# Where a run lies and whom it reports to does not change what it computes.
FREE_TO_CHANGE = (
    "training.output_dir",
    "training.resume_from_checkpoint",
    "training.report_to",
    "training.run_name",
    "training.disable_tqdm",
    "tracking.",
    "cache.folder",
    "cache.max_bytes",
    HISTORY,
)


@dataclass(frozen=True)
class RunPart:
    """A part of a run that was trained by one recipe.

    Attributes:
        resolved (`ResolvedRecipe`): The recipe, without a history.
        until_step (`int`, *optional*): Optimizer steps of the run when it ends; None for the last part.
        changes (`tuple[str, ...]`): What was changed then, as `key: old → new`.
    """

    resolved: ResolvedRecipe
    until_step: int | None = None
    changes: tuple[str, ...] = ()


def recipe_changes(old: ResolvedRecipe, new: ResolvedRecipe) -> list[str]:
    """Differences between two recipes that change what is computed, as `key: old → new`."""
    before, after = old.leaves(), new.leaves()
    return [
        f"{key}: {before.get(key, 'absent')} → {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]


def changed_sections(old: ResolvedRecipe, new: ResolvedRecipe) -> dict[str, Any]:
    """The whole sections of a recipe in which another one differs in what is computed."""
    changed = {change.partition(":")[0].partition(".")[0] for change in recipe_changes(old, new)}
    return {name: value for name, value in old.recipe.model_dump().items() if name in changed}


def with_history(resolved: ResolvedRecipe, history: Sequence[Mapping[str, Any]]) -> str:
    """YAML of a recipe that trains a changed run again, after one comment line per change.

    Args:
        resolved (`ResolvedRecipe`): The recipe that the run has now.
        history (`Sequence[Mapping]`): Its changes: `step`, `changes`, `sections`, maybe `continued_from`.
    """
    if not history:
        return resolved.to_yaml()
    parts = [
        {"until_step": entry["step"], "changes": _words(entry), "sections": entry["sections"]} for entry in history
    ]
    notes = "".join(f"# changed on the way: {line}\n" for line in history_lines(history))
    values = {**resolved.recipe.model_dump(), HISTORY: parts}
    return notes + recipe_from_dict(values, name=resolved.name).to_yaml()


def history_lines(history: Iterable[Mapping[str, Any]]) -> list[str]:
    """The changes of a run in words, one each."""
    return [f"after step {entry['step']}, {words}" for entry in history for words in _words(entry)]


def _words(entry: Mapping[str, Any]) -> list[str]:
    origin = [f"continued from {entry['continued_from']}"] if "continued_from" in entry else []
    return [*origin, *entry["changes"]]


def run_parts(resolved: ResolvedRecipe, overrides: Sequence[str] = ()) -> list[RunPart]:
    """The recipes that a run is trained by, one after the other; just one unless it was changed on the way.

    Args:
        resolved (`ResolvedRecipe`): The recipe, its overrides applied.
        overrides (`Sequence[str]`): The same; they hold for the earlier parts, too.
    """
    values = resolved.recipe.model_dump()
    history = values.pop(HISTORY)
    if not history:
        return [RunPart(resolved)]
    values["training"].pop("resume_from_checkpoint", None)  # what was done before it is trained again, too
    parts = []
    for entry in history:
        if entry["sections"]:
            earlier = {**values, **_freed(entry["sections"], values), "release": None}
            recipe = recipe_from_dict(earlier, name=resolved.name, overrides=overrides)
            parts.append(RunPart(recipe, entry["until_step"], tuple(entry["changes"])))
    return [*parts, RunPart(recipe_from_dict(values, name=resolved.name))]


def _freed(sections: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Earlier sections of a recipe, with the present values of keys that may change at any time."""
    freed = {}
    for section, earlier in sections.items():
        now = values.get(section)
        freed[section] = earlier
        if isinstance(earlier, Mapping) and isinstance(now, Mapping):
            free = [name for name in {**earlier, **now} if f"{section}.{name}".startswith(FREE_TO_CHANGE)]
            kept = {name: value for name, value in earlier.items() if name not in free}
            freed[section] = {**kept, **{name: now[name] for name in free if name in now}}
    return freed
