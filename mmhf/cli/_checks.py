"""Finds mistakes before any library is loaded that takes seconds to import."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.shipped import find_recipe, is_shipped, missing_recipe, shipped_recipes

_EXTRAS = {
    "sweep": ("optuna",),
    "demo": ("gradio", "captum"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "serve": ("fastapi", "starlette", "uvicorn", "python_multipart", "prometheus_client"),
}
"""Verb → the modules that the extra of its name brings."""
_READ_A_RECIPE = ("train", "plan", "prepare", "cache", "find-lr", "sweep")
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
    given = vars(options)
    modules = _EXTRAS.get(verb, ())
    if verb == "export":
        modules = {"onnx": modules, "openvino": (*modules, "openvino"), "executorch": ("executorch",)}.get(
            given["format"], ()
        )
    for module in modules:
        if find_spec(module) is None:
            extra = "phone" if module == "executorch" else verb
            raise InputError(f"mmhf {verb}: {module} is not installed: pip install 'mmhf[{extra}]'")
    if verb == "init" and options.data is None:
        raise InputError("mmhf init: name your data, such as data.csv or photos/; mmhf init --help tells more")
    if verb == "init" and not is_shipped(given["data"]) and not Path(given["data"]).exists():
        near = nearest_names(given["data"], list(shipped_recipes()))
        if near:
            raise InputError(f"{given['data']}: no data, and no recipe that comes with mmhf{did_you_mean(near)}")
    path = Path(given[_FILES[verb]]) if verb in _FILES else None
    if path is not None and not path.exists() and not (verb == "embed" and is_shipped(str(path))):
        near = nearest_names(str(path), sorted(map(str, path.parent.iterdir()))) if path.parent.is_dir() else ()
        raise InputError(f"{path}: no such file or folder{did_you_mean(near)}")
    if verb in _READ_A_RECIPE and given["recipe"] is not None:
        recipe = find_recipe(given["recipe"])
        if not Path(recipe).is_file():
            raise InputError(missing_recipe(recipe))
        # pydantic would read the entry points of all that is installed, to find plugins that log what is validated.
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
        from mmhf.recipe.resolve import load_recipe  # not for every verb: pydantic takes its time, too

        resolved = load_recipe(recipe, given["overrides"])
        if given.get("folds") is not None:
            from mmhf.recipe.cross_validation import check_folds

            check_folds(resolved.recipe, given["folds"])
