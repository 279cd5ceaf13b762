"""YAML 1.2 core schema, with the line of each key.

PyYAML implements YAML 1.1, which reads `2e-5` as text and `no` as False. Here a scalar is a number, boolean or null
exactly when YAML 1.2's core schema says so. Keys are always text, as they are written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mmhf.errors import InputError
from mmhf.recipe.node import Node, Origin

# Aliases can blow a small text up exponentially; no recipe comes near this many values.
_MAX_NODES = 100_000
_MAX_DEPTH = 64

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": re.compile(r"^(?:~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    "float": re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or YAML 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML 6.0 folds these line breaks away in every style but this one.
        style = '"' if any(character in "\x85\u2028\u2029" for character in text) else None
        return self.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
for _name, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, None)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, None)


def parse_scalar(text: str) -> Any:
    """The value of an unquoted scalar: None, a bool, an int, a float or the text itself.

    Raises:
        ValueError: for a number with more digits than Python converts.
    """
    for kind, pattern in _SCALARS.items():
        if pattern.match(text):
            return _scalar_value(kind, text)
    return text


def parse_yaml(text: str, source: str, *, origin: Origin | None = None) -> Node:
    """Parse one YAML document.

    Args:
        text: the document.
        source: what messages call it, such as the file's path.
        origin: the origin of every value; absent: `source` and the line that the value is on.

    Raises:
        InputError: for what is not YAML, a key that appears twice, an alias that contains itself, or a tag outside the
            core schema.
    """
    return _Reader(source, origin).read(text)


def load_yaml(path: Path, source: str) -> Node:
    """Parse a YAML file, which `source` names in messages.

    Raises:
        InputError: as `parse_yaml`, and for a file that cannot be read or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from error
    return parse_yaml(text, source)


def dump_yaml(values: Any) -> str:
    """YAML of mappings, lists and scalars that reads back equal, as YAML 1.2 and as YAML 1.1."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=119, default_flow_style=None)


class _Reader:
    def __init__(self, source: str, origin: Origin | None) -> None:
        self._source = source
        self._origin = origin
        self._open: set[int] = set()
        self._count = 0

    def read(self, text: str) -> Node:
        try:
            node = self._compose(text)
            if node is None:
                return Node(None, self._origin or Origin(self._source, 1))
            return self._convert(node, node.start_mark.line)
        except RecursionError as error:
            raise self._error(0, "nested too deeply") from error

    def _compose(self, text: str) -> yaml.Node | None:
        try:
            loader = _Loader(text)
            return loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = " ".join(part for part in (error.context, error.problem) if part)
            hint = "; indent with spaces, not with tabs" if r"'\t'" in what else ""
            raise self._error(mark.line if mark else 0, f"not YAML: {what}{hint}") from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position)
            raise self._error(line, f"not YAML: character U+{error.character:04X} is not allowed") from error
        except (ValueError, OverflowError) as error:
            # PyYAML 6.0 lets chr() fail for an escape such as "\UFFFFFFFF".
            raise self._error(0, f"not YAML: {error}") from error

    def _convert(self, node: yaml.Node, line: int) -> Node:
        if id(node) in self._open:
            raise self._error(line, "an alias contains itself")
        self._count += 1
        if self._count > _MAX_NODES:
            raise self._error(line, f"aliases expand to more than {_MAX_NODES} values")
        if len(self._open) > _MAX_DEPTH:
            raise self._error(line, "nested too deeply")
        self._open.add(id(node))
        value: Any
        if isinstance(node, yaml.MappingNode):
            self._require_tag(node, "map")
            value = self._mapping(node)
        elif isinstance(node, yaml.SequenceNode):
            self._require_tag(node, "seq")
            value = [self._convert(item, item.start_mark.line) for item in node.value]
        else:
            value = self._scalar(node)
        self._open.remove(id(node))
        return Node(value, self._origin or Origin(self._source, line + 1))

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Node]:
        children: dict[str, Node] = {}
        for key, value in node.value:
            line = key.start_mark.line
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(line, "a key must be text, not a mapping or list")
            self._check_text(key)
            if key.value in children:
                first = children[key.value].origin.place
                raise self._error(line, f"the key {key.value!r} appears twice, first at {first}")
            children[key.value] = self._convert(value, line)
        return children

    def _scalar(self, node: yaml.Node) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return self._check_text(node)
        if kind not in _SCALARS:
            raise self._error(node.start_mark.line, f"the tag {node.tag!r} is not part of YAML's core schema")
        try:
            return _scalar_value(kind, node.value)
        except ValueError as error:
            raise self._error(node.start_mark.line, f"{node.value[:40]!r} cannot be read as {kind}") from error

    def _check_text(self, node: yaml.Node) -> str:
        text: str = node.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self._error(node.start_mark.line, "half of a surrogate pair is not text")
        return text

    def _require_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _TAG + kind:
            raise self._error(node.start_mark.line, f"the tag {node.tag!r} is not part of YAML's core schema")

    def _error(self, line: int, what: str) -> InputError:
        place = self._origin.place if self._origin else f"{self._source}:{line + 1}"
        return InputError(f"{place}: {what}")


def _scalar_value(kind: str, text: str) -> Any:
    if not _SCALARS[kind].match(text):
        raise ValueError(f"{text!r} is not {kind}")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    return float(re.sub(r"(?i)\.(inf|nan)\Z", r"\1", text))
