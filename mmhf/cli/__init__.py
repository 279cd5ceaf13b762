"""The command line: one module per verb, loaded only when that verb is used."""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import mmhf
from mmhf._version import __version__
from mmhf.cli._checks import check_before_imports
from mmhf.cpu import prepare_cpu
from mmhf.errors import InputError, NothingMadeError
from mmhf.files import expand_path
from mmhf.secret_kinds import redact

_VERBS = {
    "init": "look at data and write a recipe for it, or copy one that comes with mmhf",
    "train": "train a recipe, evaluate, and release if it says so",
    "evaluate": "measure a run or a release on any split of any data",
    "predict": "predict every row of a table or folder",
    "embed": "turn the images and texts of a table or folder into embeddings",
    "search": "find rows of what embed wrote by text or image",
    "demo": "open a page to try a model on",
    "convert": "turn a checkpoint of a hand-written program that mmhf replaces into a release",
    "release": "keep a run as an immutable version, in a folder or on the Hub",
    "lineage": "show which version was trained from which, and what changed",
    "diff": "compare the settings, numbers and sizes of two versions",
    "verify": "check a release's files, and its numbers by measuring them again",
    "cache": "compute the features of frozen encoders before training",
    "plan": "show what a recipe would do, without weights or GPU",
    "find-lr": "try all learning rates of a stage in one short run",
    "sweep": "search for the best values of recipe keys",
}
_MEANT = {
    **dict.fromkeys(("serve", "gui", "app", "web"), "demo"),
    **dict.fromkeys(("fit", "run", "finetune", "fine-tune", "resume", "start"), "train"),
    **dict.fromkeys(("test", "eval", "validate", "score", "measure"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "classify", "caption", "apply"), "predict"),
    **dict.fromkeys(("push", "publish", "upload", "save"), "release"),
    **dict.fromkeys(("check", "show", "dry-run", "info"), "plan"),
    **dict.fromkeys(("new", "create", "recipe", "recipes", "list"), "init"),
    **dict.fromkeys(("hpo", "tune", "optimize", "search-space"), "sweep"),
    **dict.fromkeys(("compare",), "diff"),
    **dict.fromkeys(("import", "migrate", "convert-captioner"), "convert"),
}
"""What people type → the verb that does it."""
_COMPUTING = {"train", "evaluate", "predict", "embed", "demo", "verify", "cache", "find-lr", "sweep"}
"""Verbs that run a model."""
_BROKEN_PIPE = 141
_NO_PATHS = ("text", "prefix", "overrides")
"""Arguments that are sentences, or whose values a recipe puts in."""
_FROM_WORKER = re.compile(r"Caught \w+ in (DataLoader worker|pin memory thread)")


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, like everything else."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}; {self.prog} --help tells more")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        `int`: 0 when it worked, 1 when nothing came of it, 2 when what the user gave cannot be used, 130 when
        interrupted.
    """
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        return _refuse(_without_traceback(str(error)))
    except NothingMadeError as error:
        return _refuse(str(error), 1)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        return _refuse(_describe(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def _run(arguments: list[str]) -> None:
    parser = _Parser(prog="mmhf", description=mmhf.__doc__, epilog="mmhf VERB --help tells more.")
    parser.add_argument("--version", action="version", version=f"mmhf {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, summary in _VERBS.items():
        verbs.add_parser(verb, help=summary, add_help=False)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in _VERBS:
        nearest = [_MEANT.get(arguments[0].lower(), "")] if arguments[0].lower() in _MEANT else []
        nearest = nearest or difflib.get_close_matches(arguments[0], _VERBS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"choose one of {', '.join(_VERBS)}"
        raise InputError(f"mmhf {arguments[0]}: there is no such verb, {hint}")
    options, rest = parser.parse_known_args(arguments[:1])
    _unhide_libraries()
    _run_verb(options.verb, [*rest, *arguments[1:]])


def _unhide_libraries() -> None:
    """Python looks next to the running program first: `scripts/evaluate.py` would hide the library `evaluate`."""
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    if os.path.isfile(os.path.join(folder, "evaluate.py")):
        sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]


def _run_verb(verb: str, arguments: Sequence[str]) -> None:
    from mmhf.verbs._console import ConsoleHandler

    logger = logging.getLogger("mmhf")  # other libraries' messages reach the terminal by their own handlers
    logger.setLevel(logging.INFO)
    logger.handlers = [ConsoleHandler()]
    module = importlib.import_module(f"mmhf.cli.{verb.replace('-', '_')}")
    parser = _Parser(
        prog=f"mmhf {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    parser.add_argument(
        "--accept-moved",
        action="store_true",
        help="take versions on the Hub whose tags were moved since they were first used",
    )
    options = parser.parse_intermixed_args(arguments)
    for name, value in vars(options).items():
        if name not in _NO_PATHS:
            setattr(options, name, _expanded(name, value))
    if options.accept_moved:  # an environment variable reaches the processes of a sweep, too
        os.environ["MMHF_ACCEPT_MOVED"] = "1"
    check_before_imports(verb, options)
    if verb in _COMPUTING:
        prepare_cpu()
    # What calls a function for Python has its `run` beside the arguments; `init` may answer without any library.
    runner = module if hasattr(module, "run") else importlib.import_module(f"mmhf.verbs.{verb.replace('-', '_')}")
    runner.run(options)


def _expanded(name: str, value: Any) -> Any:
    """An argument with the home folder and environment variables in it put in: shells do so only where a word begins.

    Raises:
        InputError: They cannot be put in.
    """
    if isinstance(value, list):
        return [_expanded(name, each) for each in value]
    if not isinstance(value, str | Path):
        return value
    try:
        return type(value)(expand_path(str(value)))
    except InputError as error:
        raise InputError(f"{name.replace('_', '-')}: {error}; got {str(value)!r}") from error


def _refuse(message: str, code: int = 2) -> int:
    sys.stderr.write("".join(f"error: {line}\n" for line in redact(message).splitlines()))
    return code


def _without_traceback(message: str) -> str:
    """The error of a DataLoader worker, without the traceback that PyTorch wraps it in."""
    if not _FROM_WORKER.match(message):
        return message
    return message.rstrip().rpartition("\n")[2].partition(": ")[2]


def _describe(error: OSError) -> str:
    """What the operating system says, in one line: `PATH: No space left on device`."""
    if error.strerror is None:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
