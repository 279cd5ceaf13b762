"""Questions about the schema: what may be written at a key path."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from mmhf.recipe.node import KeyPath, dotted
from mmhf.recipe.sections import Section

Annotation: TypeAlias = Any
"""What a key may be: a class, a union, `list[...]`, `Literal[...]`, `Annotated[...]`; typing has no type for these."""


def alternatives(annotation: Annotation) -> tuple[Annotation, ...]:
    """The members of a union, without `Annotated` wrappers and without None."""
    origin: Annotation = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(found for member in get_args(annotation) for found in alternatives(member))
    return () if annotation is type(None) else (annotation,)


def is_section(annotation: Annotation) -> typing.TypeGuard[type[Section]]:
    # In Python 3.10, `list[str]` is an instance of `type`.
    is_class = isinstance(annotation, type) and get_origin(annotation) is None
    return is_class and issubclass(annotation, Section)


def tag_of(section: type[Section]) -> tuple[str, str] | None:
    """The key and value that choose this section among others, such as `("source", "fakeddit")`."""
    for name, field in section.model_fields.items():
        values = get_args(field.annotation)
        if field.is_required() and get_origin(field.annotation) is Literal and len(values) == 1:
            return name, values[0]
    return None


def sections_for(annotation: Annotation, value: object) -> list[type[Section]]:
    """The sections that `value` may be; several only when its tag is absent or wrong."""
    sections = [member for member in alternatives(annotation) if is_section(member)]
    chosen = [
        section
        for section in sections
        if isinstance(value, dict) and (tag := tag_of(section)) is not None and value.get(tag[0]) == tag[1]
    ]
    return chosen or sections


def annotation_at(root: Annotation, path: KeyPath, values: object) -> Annotation:
    """The annotation of what stands at `path`, for the tags that `values` choose; None when the path is unknown."""
    annotation = root
    for part in path:
        annotation = _step(annotation, part, values)
        values = _child(values, part)
    return annotation


def fields_at(root: Annotation, path: KeyPath, values: object) -> dict[str, FieldInfo]:
    """The keys that may be written in the section at `path`; empty when that is not a section."""
    sections = sections_for(annotation_at(root, path, values), _descend(values, path))
    return {name: field for section in sections for name, field in section.model_fields.items()}


def chosen_tag(root: Annotation, path: KeyPath, values: object) -> tuple[str, str] | None:
    """`("source", "fakeddit")` when the section at `path` was chosen among several by its tag."""
    annotation = annotation_at(root, path, values)
    sections = sections_for(annotation, _descend(values, path))
    several = sum(is_section(member) for member in alternatives(annotation)) > 1
    if not several or len(sections) != 1:
        return None
    return tag_of(sections[0])


def takes_only_text(annotation: Annotation) -> bool:
    """Whether every value of this type is text, so that `1.10` can only mean the text "1.10"."""
    members = alternatives(annotation)
    # Of what has arguments, only those of a Literal can be values.
    named = [value for member in members if member is not str for value in get_args(member) or (None,)]
    return bool(members) and all(isinstance(value, str) for value in named)


def takes_list(annotation: Annotation) -> bool:
    return any(get_origin(member) is list for member in alternatives(annotation))


def key_paths(root: Annotation) -> Iterator[tuple[str, str]]:
    """Every (key, dotted path) of the schema; list items stand at index 0."""
    yield from _key_paths(root, ())


def _key_paths(annotation: Annotation, path: KeyPath) -> Iterator[tuple[str, str]]:
    for member in alternatives(annotation):
        if get_origin(member) is list:
            yield from _key_paths(get_args(member)[0], (*path, 0))
        elif is_section(member):
            for name, field in member.model_fields.items():
                yield name, dotted((*path, name))
                yield from _key_paths(field.annotation, (*path, name))


def _step(annotation: Annotation, part: str | int, value: object) -> Annotation:
    for section in sections_for(annotation, value):
        if part in section.model_fields:
            return section.model_fields[str(part)].annotation
    for member in alternatives(annotation):
        if get_origin(member) is list and isinstance(part, int):
            return get_args(member)[0]
        if get_origin(member) is dict:
            return get_args(member)[1]
    return None


def _child(value: object, part: str | int) -> object:
    if isinstance(value, dict):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _descend(value: object, path: KeyPath) -> object:
    for part in path:
        value = _child(value, part)
    return value
