"""Files that are either whole or not there, and the names of those in a run folder."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmhf.errors import InputError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.json"
EVALUATION_FILE = "evaluation.json"
"""Definitions of the metrics, and tables by class and group."""
REPORT_FILE = "report.html"
PLOTS_FOLDER = "plots"
BAD_EXAMPLES_FILE = "bad_examples.csv"
BAD_EXAMPLES_LOG = "bad_examples.log"
"""What `bad_examples.csv` is made from when the run ends; all processes append to it."""
DUPLICATES_FILE = "duplicates.csv"
SUBGROUPS_FILE = "subgroups.csv"
FOLDS_FILE = "folds.csv"
"""The metrics of each fold of a cross-validation, with mean and standard deviation."""
PREDICTIONS_FILE = "out_of_fold.csv"
"""What was said of each row by the model of the fold that did not train on it."""
TRAINER_STATE_FILE = "trainer_state.json"
LINEAGE_FILE = "lineage.json"
"""Where training started from and which rows it saw, until the run is released."""
CHANGES_FILE = "changes.json"
"""What was changed while a run was going on, and the run that it was continued from."""
TRACKERS_FILE = "trackers.json"
"""What trackers call the run, so that it is one there however often it is resumed."""
RELEASE_FILE = "release.json"
"""What makes a folder a release."""

_TEMPORARY = re.compile(r"\..+\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{16}\.partial")
_DAY = 86_400.0
_BLOCK_BYTES = 1 << 20
_tidied: set[Path] = set()


_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_VARIABLE = re.compile(r"(?:oc\.env:)?([A-Za-z_]\w*)(?:,(.*))?", re.DOTALL)
_SHELL_VARIABLE = re.compile(r"\$([A-Za-z_]\w*)")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)


def recipe_of_model(folder: Path) -> Path:
    """The recipe that the model in a folder was trained by: beside it, or of a checkpoint that of its run."""
    beside, of_run = folder / RECIPE_FILE, folder.parent / RECIPE_FILE
    return of_run if not beside.is_file() and of_run.is_file() else beside


def expand_path(text: str) -> str:
    """A path, or any other value, with what it takes from the environment put in.

    `~` and `~NAME` at the start are home folders; `$NAME` in what looks like a path, and `${NAME}`, `${oc.env:NAME}`
    or `${oc.env:NAME,DEFAULT}` anywhere, are environment variables.

    Args:
        text (`str`): As it was written.

    Raises:
        InputError: There is no such variable or home folder, the variable holds a secret, `${...}` means something
            else, or `~` stands where nothing expands it, so that it would become the name of a folder.
    """
    expanded = _REFERENCE.sub(_referenced, text)
    if "${" in expanded:
        raise InputError("`${` begins the name of an environment variable, as in ${NAME}")
    if expanded.startswith("$") or ("/" in expanded and not re.search(r"\s\$", expanded)):
        expanded = _SHELL_VARIABLE.sub(lambda found: _environment_variable(found[1], None), expanded)
    if expanded.startswith("~"):
        expanded = _at_home(expanded)
    if "~" in expanded.replace("\\", "/").split("/"):
        raise InputError("`~` means the home folder only where a path begins; write the path out")
    return expanded


def _referenced(found: re.Match[str]) -> str:
    variable = _VARIABLE.fullmatch(found[1])
    if variable is None:
        raise InputError(f"{found[0]}: only environment variables can be put in, as ${{NAME}} or ${{oc.env:NAME}}")
    return _environment_variable(variable[1], variable[2])


def _environment_variable(name: str, default: str | None) -> str:
    if _SECRET_NAME.search(name):
        raise InputError(f"${name} sounds like a secret, and recipes are kept and released; leave it to the libraries")
    value = os.environ.get(name, default)
    if value is None:
        raise InputError(f"there is no environment variable {name}")
    return value


def _at_home(text: str) -> str:
    home, slash, rest = text.partition("/")
    if slash == "" and home != "~":
        return text  # a word that begins so, such as ~5; a folder of that name is nobody's home
    try:
        return f"{Path(home).expanduser()}{slash}{rest}"
    except RuntimeError as error:
        raise InputError(f"{home}: there is no such user's home folder") from error


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; the file moves to `path` when the block ends, and is removed if it raises.

    Readers see the old file or the new one and never half of it, wherever the process is killed. Parent folders are
    made. Several processes may write the same file: the last one wins. What a killed process left behind is removed
    by the next one that writes into the folder.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `Path`: In the same folder, with a name of its own that ends in `.partial`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Like `whole_file`, for a folder that does not exist yet: an empty one to fill.

    Raises:
        OSError: `path` is there already when the block ends, and not empty.
    """
    target = Path(path)
    temporary = _temporary(target)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file as UTF-8.

    A lone surrogate, as Python reads a file name that is not UTF-8, is written as `\\udcff`.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))


def write_json(path: str | Path, value: object) -> None:
    """Write a whole file of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a whole table: the names of the columns, then the rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        InputError: The file cannot be read, is not JSON, or holds something other than an object.
    """
    return _read_object(path, "JSON", json.loads)


def read_yaml_object(path: str | Path) -> dict[str, Any]:
    """Read a file that holds one YAML mapping, such as a resolved recipe; an empty one is an empty mapping.

    Raises:
        InputError: The file cannot be read, is not YAML, or holds something other than a mapping.
    """
    return _read_object(path, "YAML", lambda text: {} if (value := yaml.safe_load(text)) is None else value)


def _read_object(path: str | Path, language: str, parse: Callable[[str], object]) -> dict[str, Any]:
    try:
        value = parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not {language} ({' '.join(str(error).split())})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a {language} {'object' if language == 'JSON' else 'mapping'}")
    return value


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _temporary(target: Path) -> Path:
    """A name that no other process uses, and that says which one does."""
    folder = target.parent.absolute()
    if folder not in _tidied:  # once a process, for a folder may hold a million files
        _tidied.add(folder)
        _remove_leftovers(folder)
    return target.with_name(f".{target.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:16]}.partial")


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing: those of this machine at once, those of others after a day."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        found = [(entry, match) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name)) is not None]
    for entry, match in found:
        with contextlib.suppress(OSError):  # another process removes it, too
            if match["machine"] == _machine():
                is_dead = not _is_alive(int(match["process"]))
            else:
                inside = os.scandir(entry) if entry.is_dir(follow_symlinks=False) else ()
                newest = max(each.stat(follow_symlinks=False).st_mtime for each in (entry, *inside))
                is_dead = time.time() - newest > _DAY
            if is_dead and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry, ignore_errors=True)
            elif is_dead:
                os.unlink(entry)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@functools.cache
def _machine() -> str:
    """Short name of this machine, since it was started: what process ids belong to. Containers have their own."""
    known = [socket.gethostname()]
    with contextlib.suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        known.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("".join(known).encode(), digest_size=4).hexdigest()
