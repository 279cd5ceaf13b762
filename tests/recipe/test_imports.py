"""Each module of the recipe can be the first that is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import importlib, pkgutil, sys, mmhf.recipe
for found in list(pkgutil.iter_modules(mmhf.recipe.__path__)):
    for name in [name for name in sys.modules if name.startswith("mmhf.recipe")]:
        del sys.modules[name]
    importlib.import_module(f"mmhf.recipe.{found.name}")
"""


@pytest.mark.slow
def test_any_module_may_come_first() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
