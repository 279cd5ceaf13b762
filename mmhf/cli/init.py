"""Look at your data and write a recipe that trains on it, or copy one that comes with mmhf.

mmhf init data.csv                      a table: CSV, TSV, JSONL or parquet
mmhf init photos/                       class folders, images with captions, tars, Flickr30k's or Fakeddit's layout
mmhf init ORG/NAME                      a data set of the Hub
mmhf init --list                        recipes that come with mmhf
mmhf init plant_disease/resnet50        copy one of them

Says what it saw, what it guessed and why. Where two readings are possible it asks on a terminal, and takes the better
one with --yes or without a terminal.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmhf.errors import InputError
from mmhf.recipe.shipped import shipped_recipes, summary_of

if TYPE_CHECKING:
    from mmhf.verbs.init import NewRecipe

_TASKS = ("image-text-classification", "image-classification", "image-captioning", "contrastive")
_WIDTH = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", help="a table, a folder, an archive, a data set of the Hub, or a recipe")
    parser.add_argument("--task", choices=_TASKS, help="absent: what the data is most likely for")
    parser.add_argument("--label", metavar="COLUMN", help="the column of the label; absent: found by looking")
    parser.add_argument("-o", "--output", type=Path, help="the recipe to write; default recipe.yaml")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    parser.add_argument("--list", action="store_true", help="list the recipes that come with mmhf")


def run(options: argparse.Namespace) -> None:
    if options.list:
        for name, path in shipped_recipes().items():
            text = textwrap.fill(summary_of(path), _WIDTH, initial_indent="    ", subsequent_indent="    ")
            sys.stdout.write(f"{name}\n{text}\n")
        return
    if options.data is None:
        raise InputError("mmhf init: name your data, such as data.csv or photos/; mmhf init --help tells more")
    from mmhf.verbs.init import copy_recipe, first_answer, init

    if options.data in shipped_recipes() and not Path(options.data).exists():
        path = copy_recipe(options.data, options.output)
        sys.stdout.write(f"Copied to {path}. Next:\n  mmhf plan {path}\n  mmhf train {path}\n")
        return
    asks = sys.stdin.isatty() and not options.yes
    output = options.output or Path("recipe.yaml")
    made = init(options.data, output, task=options.task, label=options.label, ask=_ask if asks else first_answer)
    sys.stdout.write(_described(made))


def _ask(question: str, answers: Sequence[str]) -> str:
    if len(answers) == 1:
        return answers[0]
    listed = "".join(f"  {number}. {answer}\n" for number, answer in enumerate(answers, start=1))
    while True:
        sys.stdout.write(f"{question}\n{listed}")
        given = input("number [1]: ").strip() or "1"
        if given in answers:
            return given
        if given.isdecimal() and 1 <= int(given) <= len(answers):
            return answers[int(given) - 1]


def _described(made: NewRecipe) -> str:
    """What was seen, guessed, chosen and written, and how to go on."""
    others = f"; also possible: --task {' or '.join(made.others)}" if made.others else ""
    rows = ", ".join(f"{split} {count:,}" if count else f"{split} streamed" for split, count in made.rows.items())
    parts = [
        ("saw", [made.finding.what, *made.finding.saw]),
        ("guessed", made.finding.guessed),
        ("chose", [f"{made.draft.task}{others}", "; ".join(made.draft.chose)]),
        ("rows", [rows]),
        ("wrote", [str(made.path)]),
        ("next", [f"mmhf plan {made.path}", f"mmhf train {made.path}"]),
    ]
    lines = []
    for title, texts in parts:
        for number, text in enumerate(texts):
            head = f"{title if number == 0 else '':<8} "
            lines += textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * 9)
    return "\n".join(lines) + "\n"
