"""Turns pydantic's errors into messages about keys and lines of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mmhf.recipe import schema_tree
from mmhf.recipe.nearest import nearest_names
from mmhf.recipe.node import KeyPath, Problem, dotted, shown
from mmhf.recipe.schema_tree import Annotation
from mmhf.recipe.sections import SecretValueError, Section
from mmhf.recipe.yaml_loader import parse_scalar

SectionType = TypeVar("SectionType", bound=Section)

_MISSING = "missing"
_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
}
_MEANT = {
    **dict.fromkeys(("csv", "tsv", "json", "jsonl", "parquet", "excel", "metadata", "dataframe"), ("table",)),
    **dict.fromkeys(("imagefolder", "folder", "folders", "directory", "classes"), ("image_folder",)),
    **dict.fromkeys(("hf", "huggingface", "datasets", "dataset"), ("hub",)),
    **dict.fromkeys(("wds", "tar", "tars"), ("webdataset",)),
    **dict.fromkeys(("classification", "classifier"), ("image-classification", "image-text-classification")),
    **dict.fromkeys(("fusion", "multimodal-classification", "multimodal"), ("image-text-classification",)),
    **dict.fromkeys(("captioning", "caption", "image-to-text"), ("image-captioning",)),
    **dict.fromkeys(("clip", "retrieval", "dual-encoder", "siglip"), ("contrastive",)),
}
"""What people write for a `source` or `task` → what they mean."""
_YAML_1_1_BOOLS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


_OF_TASKS: dict[KeyPath, str] = {
    ("model", "text"): "this task reads no text; `task: image-text-classification` and `task: contrastive` do",
    ("model", "language"): "only `task: image-captioning` has a language model",
    ("model", "fusion"): "only `task: image-text-classification` fuses images and texts",
}
"""Keys that belong to other tasks → whose they are."""


def recipe_problems(
    error: ValidationError, values: dict[str, Any], root: Annotation, elsewhere: Iterable[tuple[str, str]]
) -> list[Problem]:
    """The problems found by validating `values` against the section `root`, in the recipe's own paths."""
    problems: list[Problem] = []
    for path, details in _by_path(error.errors(include_url=False), values, root).items():
        problems += _problems_at(path, details, values, root, elsewhere)
    # `pth: x` is one mistake, not an unknown `pth` and a missing `path`.
    meant = {(*problem.path[:-1], name) for problem in problems for name in problem.nearest}
    return [problem for problem in problems if not (problem.what == _MISSING and problem.path in meant)]


def value_problems(error: ValidationError, value: object, path: KeyPath) -> list[Problem]:
    """The problems found by validating one `value` at `path`."""
    grouped = _by_path(error.errors(include_url=False), value, None)
    return [_value_problem((*path, *inner), details) for inner, details in grouped.items()]


def unknown_key(
    path: KeyPath, value: object, valid: Iterable[str], *, elsewhere: Iterable[tuple[str, str]] = (), note: str = ""
) -> Problem:
    """The problem of a key that does not exist.

    Args:
        path: where it was written.
        value: its value.
        valid: the keys that exist there.
        elsewhere: (key, dotted path) pairs of other places, which are suggested when no key here is similar.
        note: what decides which keys are valid.
    """
    key, names = str(path[-1]), list(valid)
    nearest = nearest_names(key, names)
    if not nearest:
        places = (place for name, place in elsewhere if name == key and place != dotted(path))
        nearest = tuple(dict.fromkeys(places))[:2]
    if path in _OF_TASKS:
        return Problem(path, f"unknown key{note}: {_OF_TASKS[path]}", shown(value))
    listed = f", valid are {', '.join(names)}" if not nearest and 0 < len(names) <= 24 else ""
    return Problem(path, f"unknown key{note}{listed}", shown(value), nearest)


def _by_path(errors: list[ErrorDetails], values: Any, root: Annotation) -> dict[KeyPath, list[ErrorDetails]]:
    grouped: dict[KeyPath, list[ErrorDetails]] = {}
    in_union: set[KeyPath] = set()
    for details in errors:
        path = _path_in_values(details, values, root)
        grouped.setdefault(path, []).append(details)
        if details["loc"] != path:
            in_union.add(path)
    # A union complains about every member that does not fit; what went wrong inside the one that does says more.
    return {
        path: details
        for path, details in grouped.items()
        if not (path in in_union and any(other != path and other[: len(path)] == path for other in grouped))
    }


def _path_in_values(details: ErrorDetails, values: Any, root: Annotation) -> KeyPath:
    """pydantic's location without the names of union members that it puts between the keys."""
    path: list[str | int] = []
    loc, node, skipped = details["loc"], values, False
    for position, part in enumerate(loc):
        is_last_key = position == len(loc) - 1 and details["type"] in ("missing", "extra_forbidden")
        chosen = None if skipped or root is None else schema_tree.chosen_tag(root, tuple(path), values)
        is_tag = chosen is not None and chosen[1] == part
        present = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
        if is_tag:
            skipped = True
        elif present or is_last_key:
            path.append(part)
            node = node[part] if present else None
            skipped = False
    return tuple(path)


def _problems_at(
    path: KeyPath,
    errors: list[ErrorDetails],
    values: dict[str, Any],
    root: Annotation,
    elsewhere: Iterable[tuple[str, str]],
) -> list[Problem]:
    first = errors[0]
    if first["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return tag_problems(schema_tree.annotation_at(root, path, values), path, first["input"])
    if first["type"] == "extra_forbidden":
        fields = schema_tree.fields_at(root, path[:-1], values)
        chosen = schema_tree.chosen_tag(root, path[:-1], values)
        note = "" if chosen is None else f" for {chosen[0]}: {chosen[1]}"
        return [unknown_key(path, first["input"], fields, elsewhere=elsewhere, note=note)]
    return [_value_problem(path, errors)]


def tag_problems(annotation: Annotation, path: KeyPath, values: dict[str, Any]) -> list[Problem]:
    """The problems of a section whose tag (`task`, `source`) is absent or wrong. Where it is absent, keys
    are checked against those of all sections; where it is wrong, they are not checked."""
    sections = schema_tree.sections_for(annotation, None)
    pairs = [pair for section in sections if (pair := schema_tree.tag_of(section)) is not None]
    tag, tags = pairs[0][0], [value for _, value in pairs]
    expected = f"must be {_either(tags)}"
    if tag in values:
        given = values[tag]
        meant = tuple(name for name in _MEANT.get(str(given).lower(), ()) if name in tags)
        return [Problem((*path, tag), expected, shown(given), meant or nearest_names(str(given), tags))]
    known = {name for section in sections for name in section.model_fields}
    unknown = [unknown_key((*path, key), value, known) for key, value in values.items() if key not in known]
    return [Problem((*path, tag), f"{_MISSING}, {expected}"), *unknown]


def _value_problem(path: KeyPath, errors: list[ErrorDetails]) -> Problem:
    fitting = [details for details in errors if details["type"] not in _KINDS]
    first = (fitting or errors)[0]
    if first["type"] == "missing":
        return Problem(path, _MISSING)
    if first["type"] == "value_error":
        error = first["ctx"]["error"]
        return Problem(path, str(error), is_secret=isinstance(error, SecretValueError))
    given = first["input"]
    if first["type"] == "literal_error":
        expected = " ".join(details["ctx"]["expected"] for details in fitting)
        names = [name.strip("'") for name in re.findall(r"'[^']*'|\d+", expected)]
        others = [_KINDS[details["type"]] for details in errors if details["type"] in _KINDS]
        nearest = nearest_names(str(given), names)
        # With 43 optimizers to choose from, the nearest say more than all.
        what = "unknown value" if nearest and len(names) > 12 else f"must be {_either([*names, *others])}"
        return Problem(path, what, shown(given), nearest)
    if fitting:
        return Problem(path, _constraint(first), shown(given))
    kinds = list(dict.fromkeys(_KINDS[details["type"]] for details in errors))
    return Problem(path, f"must be {_either(kinds)}{_quotes(given, kinds)}", shown(given), _meant_bool(given, kinds))


def _constraint(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    if details["type"] in ("too_short", "too_long"):
        bound = context.get("min_length", context.get("max_length"))
        few_or_many = "at least" if details["type"] == "too_short" else "at most"
        return f"must have {few_or_many} {bound} item{'s' * (bound != 1)}"
    if details["type"] == "string_too_short":
        return "must not be empty"
    message = re.sub(r"^(Input|Value|String|List) should ", "must ", details["msg"])
    return message[:1].lower() + message[1:]


def _quotes(given: object, kinds: list[str]) -> str:
    """The usual mistake about quotes, if it was made."""
    if kinds == ["text"] and isinstance(given, bool | int | float):
        return " (put it in quotes)"
    if isinstance(given, str) and {"a number", "a whole number", "true or false"} & set(kinds):
        try:
            return "" if isinstance(parse_scalar(given), str) else " (write it without quotes)"
        except ValueError:
            return ""
    return ""


def _meant_bool(given: object, kinds: list[str]) -> tuple[str, ...]:
    if "true or false" not in kinds or not isinstance(given, str):
        return ()
    meant = _YAML_1_1_BOOLS.get(given.lower())
    return nearest_names(given, ("true", "false")) if meant is None else (meant,)


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def check_section(
    section: type[SectionType], values: dict[str, Any], elsewhere: Iterable[tuple[str, str]] = ()
) -> tuple[SectionType | None, list[Problem]]:
    """Validate `values`: the section and no problems, or None and all of them.

    Args:
        section: what `values` should be.
        values: what was written.
        elsewhere: (key, dotted path) pairs that are suggested for a key of another section.
    """
    try:
        return section.model_validate(values), []
    except ValidationError as error:
        return None, recipe_problems(error, values, section, elsewhere)
