"""A virtual environment with transformers, torch, torchvision, timm, pillow, what these need, and nothing else.

Its packages are links to those of the environment that runs the tests, found by following the requirements that the
packages declare, so that it is made in a second and without a network. mmhf is not in it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import mmhf

WANTED = ("transformers", "torch", "torchvision", "timm", "pillow")


def make_clean_environment(folder: Path, *more: str) -> Path:
    """Make the environment, with more packages if they are named; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    for source in _files_of(_with_requirements((*WANTED, *more))):
        (packages / source.name).symlink_to(source)
    # The defect of a CUDA torchvision beside a CPU torch is the environment's, and is mended in it by mmhf's own cure.
    cure = (Path(mmhf.__file__).parent / "_torchvision.py").read_text(encoding="utf-8")
    (packages / "sitecustomize.py").write_text(f"{cure}\n\ninstall()\n", encoding="utf-8")
    return python


def _with_requirements(names: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = _normal(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # a CPU build does without the CUDA packages it names
            continue
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def _files_of(distributions: dict[str, metadata.Distribution]) -> set[Path]:
    found = set()
    for distribution in distributions.values():
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            path = Path(str(distribution.locate_file(name)))
            if path.exists():
                found.add(path)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
