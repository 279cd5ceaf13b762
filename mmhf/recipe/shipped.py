"""The recipes that come with mmhf, found by name: `quickstart/fusion`."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from mmhf.recipe.nearest import did_you_mean, nearest_names

_ENDINGS = (".yaml", ".yml")
_LISTED = 5
_PACKAGE = Path(__file__).parents[1]


def shipped_folder() -> Path:
    """Where they are: inside an installed package, beside the package in a checkout."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name → file, sorted by name."""
    folder = shipped_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.glob("*/*.yaml"))}


def find_recipe(name: str | Path) -> str:
    """The file of a recipe: the one of that path, else the shipped one of that name, else the path as it was given.

    Args:
        name (`str` or `Path`): A path, or a shipped recipe with or without its ending: `quickstart/fusion`.
    """
    given = os.fspath(name)
    if os.path.isfile(given):
        return given
    found = shipped_recipes().get(given.removesuffix(_ENDINGS[0]).removesuffix(_ENDINGS[1]))
    return given if found is None else str(found)


def is_shipped(name: str) -> bool:
    """Whether mmhf comes with a recipe of this name."""
    return name.removesuffix(_ENDINGS[0]).removesuffix(_ENDINGS[1]) in shipped_recipes()


def is_recipe(name: str | Path) -> bool:
    """Whether a file that may be a table or a recipe is a recipe, by its name."""
    return Path(name).suffix in _ENDINGS or (not os.path.exists(name) and is_shipped(os.fspath(name)))


def summary_of(path: Path) -> str:
    """The first sentence of a recipe's header comment."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).partition(". ")[0].rstrip(".")


def missing_recipe(path: str) -> str:
    """Say that there is no such recipe file, and name those that may have been meant."""
    file, is_folder = Path(path), os.path.isdir(path)
    what = "is a folder, not a recipe file" if is_folder else "no such recipe file"
    nearby = _nearby(file if is_folder else file.parent)
    # By file name first: a mistyped folder should not outweigh the name that is right.
    nearest = nearest_names(path, nearby) or tuple(name for name in nearby if Path(name).stem == file.stem)[:_LISTED]
    nearest = nearest or _shipped_like(path)
    if nearest:
        return f"{path}: {what}{did_you_mean(nearest)}"
    listed = ", ".join(nearby[:_LISTED]) + (", ..." if len(nearby) > _LISTED else "")
    return f"{path}: {what}" + (f"; recipes nearby: {listed}" if nearby else "; mmhf init --list names those at hand")


def _shipped_like(path: str) -> tuple[str, ...]:
    """Recipes that come with mmhf whose name, or the last part of it, is nearly this."""
    name = os.path.splitext(path)[0]
    shipped = list(shipped_recipes())
    last = [each for each in shipped if each.rpartition("/")[2] == name.rpartition("/")[2]]
    return nearest_names(name, shipped) or tuple(last[:_LISTED])


def _nearby(folder: Path) -> list[str]:
    """Recipe files in the innermost existing folder of this path and one level below."""
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    found = itertools.chain(folder.glob("*.yaml"), folder.glob("*/*.yaml"))
    return sorted(str(name) for name in itertools.islice(found, 500) if not name.name.startswith("."))
