"""The command line: `mmhf VERB …`. What a verb runs is loaded only when its arguments are right."""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import mmhf
from mmhf._version import __version__
from mmhf.cli._checks import check_before_imports
from mmhf.cli.arguments import VERBS
from mmhf.cpu import prepare_cpu
from mmhf.errors import InputError, NothingMadeError, OtherProcessError
from mmhf.files import expand_path
from mmhf.recipe.shipped import shipped_recipes, summary_of
from mmhf.secret_kinds import redact
from mmhf.verbs._console import log_to_console

_MEANT = {
    **dict.fromkeys(("gui", "app", "web"), "demo"),
    **dict.fromkeys(("server", "api", "deploy", "host"), "serve"),
    **dict.fromkeys(("fit", "run", "finetune", "fine-tune", "resume", "start"), "train"),
    **dict.fromkeys(("test", "eval", "validate", "score", "measure"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "classify", "caption", "apply"), "predict"),
    **dict.fromkeys(("push", "publish", "upload", "save"), "release"),
    **dict.fromkeys(("check", "show", "dry-run", "info"), "plan"),
    **dict.fromkeys(("new", "create", "recipe", "recipes", "list"), "init"),
    **dict.fromkeys(("hpo", "tune", "optimize", "search-space"), "sweep"),
    **dict.fromkeys(("compare",), "diff"),
    **dict.fromkeys(("average", "merge", "blend", "wise-ft"), "soup"),
    **dict.fromkeys(("download", "data", "dataset", "datasets", "get"), "fetch"),
    **dict.fromkeys(("pack", "prep", "shard", "preprocess"), "prepare"),
    **dict.fromkeys(("onnx", "quantize", "openvino", "torchscript"), "export"),
    **dict.fromkeys(("import", "migrate", "convert-captioner"), "convert"),
}
"""What people type → the verb that does it."""
_COMPUTING = {
    *(
        "train",
        "evaluate",
        "predict",
        "embed",
        "demo",
        "serve",
        "export",
        "verify",
        "cache",
        "find-lr",
        "sweep",
        "soup",
    ),
}
"""Verbs that run a model."""
_BROKEN_PIPE = 141
_WIDTH = 80
_NO_PATHS = ("text", "prefix", "overrides")
"""Arguments that are texts, or that the recipe fills in."""
_FROM_WORKER = re.compile(r"Caught \w+ in (DataLoader worker|pin memory thread)")


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, like everything else."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}; {self.prog} --help tells more")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        `int`: 0 when it worked, 1 when nothing came of it or another process failed, 2 when what the user gave cannot
        be used, 130 when interrupted.
    """
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        return _refuse(_without_traceback(str(error)))
    except (NothingMadeError, OtherProcessError) as error:
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
    for verb, add_arguments in VERBS.items():
        verbs.add_parser(verb, help=(add_arguments.__doc__ or "").partition("\n")[0], add_help=False)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
        nearest = [_MEANT.get(arguments[0].lower(), "")] if arguments[0].lower() in _MEANT else []
        nearest = nearest or difflib.get_close_matches(arguments[0], VERBS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"choose one of {', '.join(VERBS)}"
        raise InputError(f"mmhf {arguments[0]}: there is no such verb, {hint}")
    options, rest = parser.parse_known_args(arguments[:1])
    # Python looks next to the running program first: `scripts/evaluate.py` would hide the library `evaluate`.
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    if os.path.isfile(os.path.join(folder, "evaluate.py")):
        sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]
    _run_verb(options.verb, [*rest, *arguments[1:]])


def _run_verb(verb: str, arguments: Sequence[str]) -> None:
    log_to_console()
    add_arguments = VERBS[verb]
    parser = _Parser(
        prog=f"mmhf {verb}",
        description=inspect.getdoc(add_arguments),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
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
    if verb == "init" and options.list:
        for name, path in shipped_recipes().items():
            text = textwrap.fill(summary_of(path), _WIDTH, initial_indent="    ", subsequent_indent="    ")
            sys.stdout.write(f"{name}\n{text}\n")
        return
    check_before_imports(verb, options)
    if verb in _COMPUTING:
        prepare_cpu()
    _load(f"mmhf.verbs.{verb.replace('-', '_')}").run(options)


def _load(verb: str) -> ModuleType:
    """A verb's module. What libraries make as they are loaded stays, and is never searched for garbage."""
    if "torch" in sys.modules:
        return importlib.import_module(verb)
    gc.disable()
    try:
        return importlib.import_module(verb)
    finally:
        gc.freeze()
        gc.enable()


def _expanded(name: str, value: object) -> object:
    """An argument with home folder and environment variables filled in, which shells do only at the start of a word.

    Raises:
        InputError: One of them cannot be filled in.
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
