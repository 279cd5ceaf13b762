"""Mistakes that are found before a library is loaded that takes seconds to import."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.shipped import find_recipe, is_shipped, missing_recipe

_EXTRAS = {"sweep": {"optuna": "sweep"}, "demo": {"gradio": "demo", "captum": "demo"}}
_READ_A_RECIPE = ("train", "plan", "cache", "find-lr", "sweep")
_FILES = {
    "predict": "input",
    "embed": "input",
    "search": "index",
    "release": "run",
    "sweep": "space",
    "convert": "checkpoint",
}
"""Verb → the option that names a file or folder which must be there."""


def check_before_imports(verb: str, options: argparse.Namespace) -> None:
    """Check what can be checked with light imports alone.

    Args:
        verb (`str`): The verb.
        options (`argparse.Namespace`): Its command line.

    Raises:
        InputError: an extra is not installed, a file is not there, or the recipe is wrong.
    """
    for module, extra in _EXTRAS.get(verb, {}).items():
        if find_spec(module) is None:
            raise InputError(f"mmhf {verb}: {module} is not installed: pip install 'mmhf[{extra}]'")
    given = vars(options)
    path = given.get(_FILES.get(verb, ""))
    if path is not None and not Path(path).exists() and not _is_a_shipped_recipe(verb, path):
        raise InputError(f"{path}: no such file or folder{_nearest(Path(path))}")
    if verb in _READ_A_RECIPE and given["recipe"] is not None:
        recipe = find_recipe(given["recipe"])
        if not Path(recipe).is_file():
            raise InputError(missing_recipe(recipe))
        from mmhf.recipe.resolve import load_recipe  # not for every verb: pydantic takes its time, too

        load_recipe(recipe, given["overrides"])


def _is_a_shipped_recipe(verb: str, path: Path) -> bool:
    return verb == "embed" and is_shipped(str(path))


def _nearest(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return ""
    return did_you_mean(nearest_names(str(path), sorted(str(each) for each in folder.iterdir())))
