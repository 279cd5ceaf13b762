"""docs/moving-over.md names only keys that a recipe may have."""

import re
from pathlib import Path

import pytest

from mmhf.recipe.by_task import RECIPE_BY_TASK
from mmhf.recipe.schema_tree import key_paths
from mmhf.recipe.training_arguments import training_fields

PAGE = Path(__file__).parents[2] / "docs" / "moving-over.md"


def keys_by_task() -> list[tuple[str, str]]:
    found = []
    for section in PAGE.read_text().split("\n## ")[1:]:
        task = re.search(r"^Task: (\S+)$", section, re.M)
        assert task, section.splitlines()[0]
        rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")][1:]
        found += [(task[1], key) for row in rows for key in re.findall(r"`([^`]+)`", row[2])]
    return found


@pytest.mark.parametrize(("task", "key"), keys_by_task())
def test_key_exists(task: str, key: str) -> None:
    if key.startswith("mmhf "):
        return
    if key.startswith("training."):
        assert key.removeprefix("training.") in training_fields()
        return
    assert key.replace("[]", ".0") in {path for _, path in key_paths(RECIPE_BY_TASK[task])}


def test_page_covers_every_task() -> None:
    assert {task for task, _ in keys_by_task()} == set(RECIPE_BY_TASK)
