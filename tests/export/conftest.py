"""Tiny models, exported once a session, and a photo that they are shown."""

from __future__ import annotations

import functools
import io
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from saved_families import save_tiny_family
from transformers import GenerationConfig

from mmhf.export.folder import export_model
from mmhf.sample_data import read_sample

FAMILIES = ("fusion", "image classifier", "dual encoder", "captioner")
# What must not be needed, nor be there by accident.
_ALONE = """
import os, runpy, sys
before = set(sys.modules)  # a file of site-packages may mend torchvision as Python starts
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
loaded = {"torch", "transformers", "mmhf"} & (sys.modules.keys() - before)
assert not loaded, loaded
"""


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """A folder of each family."""
    root = tmp_path_factory.mktemp("models")
    folders = {family: save_tiny_family(family, root / family.replace(" ", "_")) for family in FAMILIES}
    GenerationConfig(max_new_tokens=6, eos_token_id=3, pad_token_id=0).save_pretrained(folders["captioner"])
    return folders


@pytest.fixture(scope="session")
def exported(tiny_models, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a family exported for ONNX Runtime, when it is first asked for."""
    root = tmp_path_factory.mktemp("exported")

    @functools.cache
    def export(family: str) -> Path:
        model = tiny_models[family]
        export_model(model, root / model.name)
        return root / model.name

    return export


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Pictures of several shapes: wide, high, with transparency, turned by their metadata, grey."""
    folder = tmp_path_factory.mktemp("photos")
    drawing = Image.open(io.BytesIO(read_sample("test")["image"][3].as_py()["bytes"])).convert("RGB")
    drawing.resize((150, 70)).save(folder / "wide.jpg")
    drawing.resize((41, 97)).save(folder / "high.png")
    clear = drawing.copy()
    clear.putalpha(90)
    clear.save(folder / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    drawing.resize((60, 90)).save(folder / "turned.jpg", exif=exif)
    drawing.convert("L").save(folder / "grey.png")
    return folder


@pytest.fixture
def program(monkeypatch):
    """What an export's program defines, in this process."""

    def load(folder: Path) -> dict[str, Any]:
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "runtime", raising=False)  # each format's is another
        return runpy.run_path(str(next(folder.glob("run_*.py"))))

    return load


@pytest.fixture
def run_alone():
    """Run an export's program in a process of its own; returns what it prints."""

    def run(folder: Path, *arguments: str) -> str:
        command = [sys.executable, "-c", _ALONE, str(folder / "run_onnx.py"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
