"""What the documentation says can be typed."""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmhf.cli.arguments import VERBS
from mmhf.recipe.by_task import RECIPE_BY_TASK
from mmhf.recipe.schema_tree import key_paths
from mmhf.recipe.shipped import shipped_recipes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = runpy.run_path(str(ROOT / "docs" / "reference.py"))
_PLACEHOLDER = re.compile(r"[A-Z]{3,}|…|\.\.\.")


def commands(page: Path) -> Iterator[str]:
    """The lines of code blocks that begin with `mmhf`, and the same in backticks."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.startswith("mmhf "))
    yield from (found for found in re.findall(r"`(mmhf [a-z][^`\n]*)`", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_can_be_typed(page: Path) -> None:
    """Each verb is one, with options that it has; recipes that are named come with mmhf."""
    for command in commands(page):
        words = shlex.split(command, comments=True)[1:]
        if not words or words[0].startswith("-"):
            continue
        assert words[0] in VERBS, command
        parser = argparse.ArgumentParser(exit_on_error=False)
        VERBS[words[0]](parser)
        known = {option for action in parser._actions for option in action.option_strings}
        for word in words[1:]:
            if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
                assert word.partition("=")[0] in known, command
        for name in words[1:]:
            if re.fullmatch(r"(quickstart|fakeddit|flickr30k|plant_disease|dermatology|captions)/\w[\w.]*", name):
                assert name in shipped_recipes(), command


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    generated = {"recipe.md", "python.md"}
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target and target not in generated:
            assert (page.parent / target).exists(), target


def test_the_recipe_reference_has_every_key() -> None:
    text = REFERENCE["recipe_reference"]()
    keys = {name for recipe in RECIPE_BY_TASK.values() for name, _ in key_paths(recipe)}
    assert not [key for key in keys if f"| `{key}` |" not in text]
    anchors = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", line[3:].lower().replace("`", ""))).strip("-")
               for line in text.splitlines() if line.startswith("## ")}  # fmt: skip
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_the_python_reference_has_every_function() -> None:
    text = REFERENCE["python_reference"]()
    assert all(f"## mmhf.{name}\n" in text for name in REFERENCE["FUNCTIONS"]) and "train_dataset" in text


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = pytest.importorskip("mkdocs.commands.build")
    config = importlib.import_module("mkdocs.config").load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path))
    build.build(config)
    assert (tmp_path / "recipe" / "index.html").is_file() and (tmp_path / "python" / "index.html").is_file()
