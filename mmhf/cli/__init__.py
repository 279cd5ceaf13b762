"""The command line: one verb a module, none of which is loaded before it is asked for."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

import mmhf
from mmhf.errors import InputError

_VERBS = {
    "train": "train a recipe, evaluate, and release if it says so",
    "evaluate": "measure a run or a release on any split of any data",
    "predict": "predict for every row of a table or folder",
    "release": "keep a run as an immutable version",
    "plan": "show what a recipe would do, without weights or GPU",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        `int`: 0 when it worked, 2 when what the user gave cannot be used, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="mmhf", description=mmhf.__doc__, epilog="mmhf VERB --help tells more.")
    parser.add_argument("--version", action="version", version=f"mmhf {mmhf.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, summary in _VERBS.items():
        verbs.add_parser(verb, help=summary, add_help=False)
    options, rest = parser.parse_known_args(arguments[:1])
    return _run_verb(options.verb, [*rest, *arguments[1:]])


def _run_verb(verb: str, arguments: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("mmhf").setLevel(logging.INFO)
    module = importlib.import_module(f"mmhf.cli.{verb}")
    parser = argparse.ArgumentParser(prog=f"mmhf {verb}", description=module.__doc__)
    module.add_arguments(parser)
    options = parser.parse_intermixed_args(arguments)
    try:
        module.run(options)
    except InputError as error:
        sys.stderr.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0
