"""What a model was made with: code, interpreter, packages."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from mmhf._version import __version__

_PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "timm",
    "safetensors",
    "huggingface-hub",
)


def environment() -> dict[str, str]:
    """Versions of Python, the platform and the packages that decide what a model computes."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def code_version() -> dict[str, str | None]:
    """`version` of mmhf and, when it runs from a checkout, `git_commit`; `+changes` marks uncommitted edits."""
    return {"version": __version__, "git_commit": _git_commit(Path(__file__).resolve().parents[1])}


def _git_commit(package_dir: Path) -> str | None:
    # `ls-files` tells a checkout of mmhf from a virtual environment that lies inside some other repository.
    if not _git(package_dir, "ls-files", "__init__.py"):
        return None
    commit = _git(package_dir, "rev-parse", "HEAD")
    return f"{commit}+changes" if commit and _git(package_dir, "status", "--porcelain", ".") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
