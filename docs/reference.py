"""The pages of the documentation that are generated: the recipe key by key, and the functions for Python.

A hook of mkdocs (see mkdocs.yml); `python docs/reference.py` prints both.
"""

from __future__ import annotations

import mmhf  # (first: it makes torchvision importable beside a CPU build of torch)

import inspect  # isort: skip
import json
import re
import sys
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from mmhf.recipe.by_task import RECIPE_BY_TASK
from mmhf.recipe.editor_schema import field_descriptions
from mmhf.recipe.schema_tree import alternatives, is_section, tag_of
from mmhf.recipe.sections import Section
from mmhf.recipe.training_arguments import training_fields

FUNCTIONS = ("init", "plan", "train", "evaluate", "predict", "pipeline", "load_recipe", "Run")
_HEAD = """# Recipes, key by key

Generated from the schema that recipes are checked against. `mmhf plan --schema` writes it as JSON Schema for editors.
Overrides on the command line are written with dots: `training.learning_rate=1e-4`. `extends: NAME` takes another
recipe as the base.

"""


def recipe_reference() -> str:
    """A heading a section, a row a key: type, default, meaning."""
    parts, waiting, seen = [_HEAD], [], set()
    for task, recipe in RECIPE_BY_TASK.items():
        parts.append(f"## task: {task}\n\n{_table(recipe)}\n")
        waiting += [section for name in recipe.model_fields for section in _sections_in(recipe, name)]
    while waiting:
        section = waiting.pop(0)
        if section in seen:
            continue
        seen.add(section)
        tag = tag_of(section)
        chosen = f" (`{tag[0]}: {tag[1]}`)" if tag else ""
        about = inspect.cleandoc(section.__doc__) if section.__doc__ and "__doc__" in vars(section) else ""
        parts.append(f"## {section.__name__}{chosen}\n\n{about}\n\n{_table(section)}\n")
        waiting += [found for name in section.model_fields for found in _sections_in(section, name)]
    names = ", ".join(f"`{name}`" for name in training_fields())
    parts.append(f"## training\n\nAny field of `transformers.TrainingArguments` by its own name: {names}.\n")
    return "\n".join(parts)


def python_reference() -> str:
    """The functions that stand behind the verbs, with their own documentation."""
    parts = ["# Python\n\nEach verb of the command line is a function; `mmhf.NAME` also has the models' classes.\n"]
    for name in FUNCTIONS:
        found = getattr(mmhf, name)
        signature = re.sub(r"'([^']*)'", r"\1", str(inspect.signature(found)))
        parts.append(f"## mmhf.{name}\n\n```python\n{name}{signature}\n```\n\n```text\n{inspect.getdoc(found)}\n```\n")
    return "\n".join(parts)


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages; called by mkdocs."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "recipe.md", content=recipe_reference()))
    files.append(File.generated(config, "python.md", content=python_reference()))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Links to files outside of docs/ lead to the repository; called by mkdocs."""
    return markdown.replace("](../", "](https://github.com/mmhf/mmhf/blob/main/")


def _sections_in(section: type[Section], name: str) -> Iterator[type[Section]]:
    for member in _members(section.model_fields[name].annotation):
        if is_section(member):
            yield member


def _members(annotation: Any) -> Iterator[Any]:
    for member in alternatives(annotation):
        if get_origin(member) in (list, dict):
            for inner in get_args(member):
                yield from _members(inner)
        else:
            yield member


def _table(section: type[Section]) -> str:
    about = field_descriptions(section)
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        default = "required" if field.default is PydanticUndefined else f"`{_plain(field.default)}`"
        text = " ".join(about.get(name, "").split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {_type(field.annotation)} | {default} | {text} |")
    return "\n".join(rows)


def _plain(value: Any) -> str:
    return "its own defaults" if isinstance(value, Section) else json.dumps(value)


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(member) for member in get_args(annotation)))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {_type(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"mapping to {_type(get_args(annotation)[1])}"
    if is_section(annotation):
        return f"[{annotation.__name__}](#{_anchor(annotation)})"
    words = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        type(None): "null",
        Any: "anything",
    }
    return words.get(annotation, "anything")


def _anchor(section: type[Section]) -> str:
    tag = tag_of(section)
    title = f"{section.__name__} ({tag[0]}: {tag[1]})" if tag else section.__name__
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-")


if __name__ == "__main__":
    sys.stdout.write(recipe_reference() + python_reference())
