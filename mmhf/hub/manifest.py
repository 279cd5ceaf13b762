"""`release.json`: what a release is, its version, where it came from, and the hash of each of its files."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import total_ordering
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mmhf._version import __version__
from mmhf.damage import content_hash, is_model_file
from mmhf.errors import DamagedError, InputError
from mmhf.files import LINEAGE_FILE, RELEASE_FILE, TRACKERS_FILE, TRAINER_STATE_FILE, file_sha256
from mmhf.recipe.schema import CardSection

# A release remembers its lineage in its own file.
_NEVER_RELEASED = {RELEASE_FILE, TRACKERS_FILE, TRAINER_STATE_FILE, LINEAGE_FILE, TRACKERS_FILE}
_SHOWN = 3
_VERSION = re.compile(r"v?(?P<numbers>\d+(?:\.\d+)*)(?P<suffix>(?:[-_.][0-9A-Za-z]+)*)")
_MIN_NUMBERS = 3
_Identifier = tuple[int, int, str]
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


@dataclass(frozen=True)
class ReleaseReference:
    """Names one state of a model: where it lies, which version, which content.

    Args:
        repo (`str`): A repository folder, a Hub repository, or a run folder.
        revision (`str`, *optional*): The version (`v1.6`), or a Hub revision; `None` for a run folder.
        commit (`str`, *optional*): The content: a release's own hash, or the Hub's commit.
    """

    repo: str
    revision: str | None = None
    commit: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class ReleaseNotes:
    """What a release records in addition to its run folder.

    Args:
        name (`str`): Name of the model, for the card's title.
        version (`str`): As `v1.8`.
        model (`str`): What a user passes as `model=`.
        revision (`str`, *optional*): What a user passes as `revision=`; absent where `model` is a folder.
        parent (`ReleaseReference`, *optional*): What training started from; `None` = from the backbones.
        extra (`Mapping[str, Any]`): More to record under `extra`, such as `data_fingerprint`.
        card (`CardSection`): What the card says that no program can know.
        lora (`"merge" | "keep"`, *optional*): What becomes of low-rank changes; see `ReleaseSection`.
    """

    name: str = ""
    version: str = ""
    model: str = ""
    revision: str | None = None
    parent: ReleaseReference | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    card: CardSection = CardSection()
    lora: Literal["merge", "keep"] | None = None


class Release(BaseModel):
    """What `release.json` says."""

    model_config = ConfigDict(frozen=True)

    version: str
    commit: str
    """sha256 over the sorted names and hashes of `files`: equal content, equal commit."""
    created: str
    """UTC, ISO 8601."""
    parent: ReleaseReference | None
    task: str
    metrics: dict[str, Any]
    code: dict[str, str | None]
    environment: dict[str, str]
    files: dict[str, str]
    """File name → sha256."""
    checksums: dict[str, str] = {}
    """File name → xxh3, which is compared whenever the release is loaded; sha256 takes several times as long."""
    sizes: dict[str, int] = {}
    """File name → bytes."""
    parameters: int | None = None
    """Numbers in the weights."""
    extra: dict[str, Any] = {}
    """Whatever the releasing program adds, such as `data_fingerprint`."""


def read_release(release_dir: str | Path) -> Release:
    """Read `release.json` of a release folder; raises `InputError` when it is not one or the file is damaged."""
    path = Path(release_dir) / RELEASE_FILE
    if not path.is_file():
        raise InputError(f"{release_dir}: not a release, it has no {RELEASE_FILE}")
    try:
        return Release.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DamagedError(f"{path}: damaged ({error.errors()[0]['msg']}); fetch the release again") from error


def verify_release(release_dir: str | Path, *, exactly: bool = False) -> Release:
    """Compare every file of a release with what was recorded when it was made.

    Args:
        release_dir (`str` or `Path`): Its folder.
        exactly (`bool`, defaults to `False`): Compare sha256, which nobody can forge, and not the quick checksum.

    Raises:
        DamagedError: Names each file that is missing or changed.
    """
    release_dir = Path(release_dir)
    release = read_release(release_dir)
    damaged = [f"{name} {what}" for name, what in damaged_files(release_dir, release, exactly=exactly).items()]
    if not damaged and content_commit(release.files) != release.commit:
        damaged.append(f"{RELEASE_FILE} has changed")
    if damaged:
        more = f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
        raise DamagedError(
            f"{release_dir}: damaged release, {', '.join(damaged[:_SHOWN])}{more}; restore it or use another version"
        )
    return release


def damaged_files(release_dir: Path, release: Release, *, exactly: bool = False) -> dict[str, str]:
    """Name of each file that is not as it was → `is missing` or `has changed`."""
    damaged, quick = {}, {} if exactly else release.checksums
    for name, expected in release.files.items():
        path = release_dir / name
        if not path.is_file():
            damaged[name] = "is missing"
        elif (content_hash(path) != quick[name]) if name in quick else (file_sha256(path) != expected):
            damaged[name] = "has changed"
    return damaged


def released_files(folder: str | Path) -> list[Path]:
    """The files of a run folder that make up its model and enter a release, sorted by name."""
    found = [path for path in Path(folder).iterdir() if is_model_file(path.name) and path.is_file()]
    return sorted(path for path in found if path.name not in _NEVER_RELEASED)


def soup_names(soup: Sequence[Mapping[str, Any]]) -> list[str]:
    """What an average is of, from `extra.soup`: `runs/a (0.5)`, `org/b@v1.2 (0.5)`."""
    return [
        f"{ReleaseReference(each['repo'], each['revision'], each['commit'])} ({each['weight']:.3g})" for each in soup
    ]


def content_commit(hashes: Mapping[str, str]) -> str:
    """One hash for a set of files, from their names and sha256 hashes."""
    return hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()


@total_ordering
@dataclass(frozen=True, eq=False)
class Version:
    """A version such as `v1.8`, `v1.10.2` or `v2.0-rc.1`, ordered as semantic versioning orders them.

    Numbers compare as numbers (1.10 > 1.9), absent ones count as 0 (1.8 equals 1.8.0), and a version with a suffix
    comes before the same version without one (2.0-rc.1 < 2.0).

    Args:
        numbers (`tuple[int, ...]`): The dotted numbers.
        suffix (`str`): What follows them, with its separator; may be empty.
    """

    numbers: tuple[int, ...]
    suffix: str = ""

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read `1.8` or `v1.8`; raises `InputError` for anything that is not a version."""
        match = _VERSION.fullmatch(text)
        if match is None:
            raise InputError(f"{text!r} is not a version: write it as 1.8, v1.8, 1.8.2 or 1.8-rc.1")
        return cls(tuple(int(number) for number in match["numbers"].split(".")), match["suffix"])

    @classmethod
    def is_valid(cls, text: str) -> bool:
        return _VERSION.fullmatch(text) is not None

    def _key(self) -> tuple[tuple[int, ...], bool, tuple[_Identifier, ...]]:
        padded = self.numbers + (0,) * (_MIN_NUMBERS - len(self.numbers))
        identifiers = tuple(
            (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split("[-_.]", self.suffix)[1:]
        )
        return padded, not self.suffix, identifiers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._key() == other._key()

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        return "v" + ".".join(str(number) for number in self.numbers) + self.suffix


def environment() -> dict[str, str]:
    """Versions of Python, the platform and the packages that affect what a model computes."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def code_version() -> dict[str, str | None]:
    """`version` of mmhf and, in a git checkout, `git_commit`, with `+changes` if there are uncommitted edits."""
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
