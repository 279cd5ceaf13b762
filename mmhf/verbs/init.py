"""From somebody's data to a recipe that trains on it."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmhf.data.discovery import Means, draft_recipe, look_at
from mmhf.data.discovery.draft import Draft, best_task
from mmhf.data.discovery.findings import Finding
from mmhf.data.discovery.roles import Ask
from mmhf.errors import InputError
from mmhf.files import write_text
from mmhf.hub.hub_errors import hub_answers
from mmhf.recipe import load_recipe
from mmhf.recipe.shipped import shipped_recipes
from mmhf.tasks import task_of

_WAIT_FOR_HUB = 2.0
_WIDTH = 80


@dataclass(frozen=True)
class NewRecipe:
    """A recipe that was written.

    Attributes:
        path (`Path`): The file.
        rows (`dict[str, int | None]`): Split → rows; None for a stream that was not counted.
        finding (`Finding`): What the data was taken for.
        draft (`Draft`): What was chosen.
        others (`tuple[str, ...]`): Further tasks that the data could train.
    """

    path: Path
    rows: dict[str, int | None]
    finding: Finding
    draft: Draft
    others: tuple[str, ...]


def run(options: argparse.Namespace) -> None:
    if options.data in shipped_recipes() and not Path(options.data).exists():
        path = copy_recipe(options.data, options.output)
        sys.stdout.write(f"Copied to {path}. Next:\n  mmhf plan {path}\n  mmhf train {path}\n")
        return
    asks = sys.stdin.isatty() and not options.yes
    output = options.output or Path("recipe.yaml")
    made = init(options.data, output, task=options.task, label=options.label, ask=_ask if asks else first_answer)
    sys.stdout.write(_described(made))


def first_answer(question: str, answers: Sequence[str]) -> str:
    """Take the better one of two readings."""
    return answers[0]


def init(
    data: str | Path,
    output: str | Path = "recipe.yaml",
    *,
    task: str | None = None,
    label: str | None = None,
    ask: Ask = first_answer,
    means: Means | None = None,
) -> NewRecipe:
    """Look at data, and write a recipe that trains on it.

    Args:
        data (`str` or `Path`): A CSV, TSV, JSONL or parquet table; a folder of class folders, of images with captions,
            with `metadata.jsonl`, in Flickr30k's or Fakeddit's layout, or of WebDataset tars; an archive of class
            folders; or a data set of the Hub.
        output (`str` or `Path`, defaults to `"recipe.yaml"`): The recipe; must not be there yet.
        task (`str`, *optional*): What to train; absent: what the data is most likely for.
        label (`str`, *optional*): The column of the label.
        ask (`Ask`, *optional*): Decides where two readings are possible; absent: the better one is taken.
        means ([`Means`], *optional*): What there is to train with; absent: this machine.

    Raises:
        InputError: the data is not there or cannot be trained on, or the recipe exists already.
    """
    output = Path(output)
    derived = output.with_name(f"{output.stem}_table.jsonl")
    if output.exists():
        raise InputError(f"{output}: exists already; name another file with -o, or remove it")
    finding = look_at(str(data), ask=ask, derived=derived, label=label)
    means = means or _this_machine()
    tasks = best_task(finding, means)
    if task is not None and task not in tasks:
        raise InputError(f"--task {task}: {finding.what} can train {' or '.join(tasks)}")
    task = task or ask("What is to be trained?", tasks)
    draft = draft_recipe(finding, means, task=task, name=output.stem)
    if finding.derived is not None:
        write_text(derived, finding.derived)
    write_text(output, draft.text)
    loaded = task_of(load_recipe(output).recipe).load_data(check_images=False)
    rows = {split: loaded.num_rows(split) for split in loaded.splits}
    return NewRecipe(output, rows, finding, draft, tuple(each for each in tasks if each != task))


def copy_recipe(name: str, output: str | Path | None = None) -> Path:
    """Copy a recipe that comes with mmhf.

    Args:
        name (`str`): Its name, such as `plant_disease/resnet50`.
        output (`str` or `Path`, *optional*): Where to; absent: a file of its name in the current folder.

    Raises:
        InputError: a file is there already.
    """
    source = shipped_recipes()[name]
    target = Path(source.name) if output is None else Path(output)
    if target.exists():
        raise InputError(f"{target}: exists already; name another file with -o, or remove it")
    folder = name.rpartition("/")[0]
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    # What it extends lies beside the original; it is found by name from anywhere.
    copied = [
        line.replace("extends: ", f"extends: {folder}/", 1) if line.startswith("extends: ") else line for line in lines
    ]
    write_text(target, "".join(copied))
    return target


def _this_machine() -> Means:
    gib = 0.0
    if torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Means(gpu_gib=gib, hub=hub_answers(_WAIT_FOR_HUB), offline=Means.has_offline_weights())


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
