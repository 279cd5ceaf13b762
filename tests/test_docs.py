"""What the documentation says can be typed."""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import importlib
import re
import runpy
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from looks import chromium, problems
from pydantic import TypeAdapter

from mmhf.cli.arguments import VERBS
from mmhf.errors import InputError
from mmhf.recipe import load_recipe
from mmhf.recipe.by_task import RECIPE_BY_TASK
from mmhf.recipe.schema_tree import annotation_at, key_paths
from mmhf.recipe.sections import Section
from mmhf.recipe.shipped import shipped_recipes
from mmhf.recipe.training_arguments import training_fields

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = runpy.run_path(str(ROOT / "docs" / "reference.py"))
QUICKSTART = ("fusion", "image_classifier", "captioner", "dual_encoder")


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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
@pytest.mark.slow
def test_overrides_in_commands_are_keys_with_values_that_fit(page: Path) -> None:
    """Those of shipped recipes are resolved; those of a recipe of one's own must fit one of the quickstart's."""
    for command in commands(page):
        words = [word for word in shlex.split(command, comments=True)[1:] if not word.startswith("-")]
        overrides = [word for word in words if re.match(r"~?[a-z_]+[.\w]*=|~[a-z]", word)]
        if words[:1] not in (["train"], ["plan"], ["cache"], ["find-lr"]) or len(words) < 2:
            continue
        names = [words[1]] if words[1] in shipped_recipes() else [f"quickstart/{name}" for name in QUICKSTART]
        refusals = []
        for name in names:
            try:
                load_recipe(name, overrides)
            except InputError as error:
                refusals.append(str(error))
        assert len(refusals) < len(names), f"{command}: {refusals}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_settings_in_yaml_blocks_are_keys(page: Path) -> None:
    sections = {
        "model",
        "data",
        "training",
        "stages",
        "evaluation",
        "cache",
        "tracking",
        "release",
        "contrastive",
        "ema",
    }
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        values = yaml.safe_load(block)
        if not isinstance(values, dict) or not values.keys() & sections:
            continue
        unknown = [
            dotted
            for dotted in _leaves(values)
            if not any(annotation_at(recipe, dotted, values) is not None for recipe in RECIPE_BY_TASK.values())
        ]
        assert not unknown, f"{block}: {unknown}"


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path[:1] == ("training",) and len(path) == 2:
        assert path[1] in training_fields(), path
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, inner in enumerate(value):
            yield from _leaves(inner, (*path, number))
    elif path != ("extends",):
        yield path


def test_the_page_of_backbones_names_all_that_come_from_packages() -> None:
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    modules = (ROOT / "mmhf" / "models").glob("*backbones.py")
    source = "\n".join(module.read_text(encoding="utf-8") for module in modules)
    names = re.findall(r'^[A-Z0-9_]+ = "([a-z0-9-]+)"$', source, re.MULTILINE)
    assert names and not [name for name in names if f"`pypi/{name}`" not in text]


def test_every_key_has_an_example_that_is_valid_and_no_default() -> None:
    used = set()
    for section in sections():
        for name, field in section.model_fields.items():
            example, annotation = REFERENCE["example_of"](section, name), field.annotation
            for condition in field.metadata:
                annotation = Annotated[annotation, condition]
            TypeAdapter(annotation).validate_python(example)
            assert field.is_required() or example != field.default, (section.__name__, name)
            used |= {name, f"{section.__name__}.{name}"}
    assert not REFERENCE["EXAMPLES"].keys() - used, "of keys that are no more"


def sections() -> list[type[Section]]:
    """All sections of all recipes."""
    found: list[type[Section]] = []
    waiting: list[type[Section]] = list(RECIPE_BY_TASK.values())
    while waiting:
        section = waiting.pop()
        if section not in found:
            found.append(section)
            waiting += [each for name in section.model_fields for each in REFERENCE["_sections_in"](section, name)]
    return found


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
    with chromium() as browser, served(tmp_path) as address:
        for page in ("", "recipe/", "python/", "results/", "backbones/"):
            # The theme's own small headings have a contrast of 4.1 to 4.4.
            assert problems(browser, f"{address}/{page}", least_contrast=4) == [], page


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder by HTTP: a page that is opened as a file may not read the site's index for the search."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} | {"recipe.md", "python.md"}
    assert sorted(named) == sorted(pages)
