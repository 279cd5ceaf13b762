"""The table of the fields of transformers.TrainingArguments that recipes are checked against without importing it.

python tests/make_training_fields.py    # writes it anew after an update of transformers
"""

from __future__ import annotations

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import dataclasses  # isort: skip
import enum
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import transformers
from transformers import TrainingArguments
from transformers.debug_utils import DebugOption
from transformers.training_args import trainer_log_levels

from mmhf.recipe.training_arguments import CONTROLLED, TABLE, TRACKERS

_PLAIN = {int: "int", float: "float", bool: "bool", str: "str", type(None): "null", dict: "dict", list: "list"}


def installed_fields() -> dict[str, Any]:
    """The table, of the installed version."""
    hints = typing.get_type_hints(TrainingArguments)
    fields = {}
    for field in dataclasses.fields(TrainingArguments):
        if not field.init or field.name in CONTROLLED:
            continue
        entry: dict[str, Any] = {"type": _types(field, hints[field.name])}
        if isinstance(field.default, str | int | float | None):
            entry["default"] = field.default
        if "help" in field.metadata:
            entry["help"] = field.metadata["help"]
        fields[field.name] = entry
    return {"transformers": transformers.__version__, "fields": fields}


def _types(field: dataclasses.Field[Any], hint: Any) -> list[Any]:
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    null = ["null"] if type(None) in members else []
    enums = [member for member in members if isinstance(member, type) and issubclass(member, enum.Enum)]
    if field.name == "report_to":
        trackers = {"one of": ["all", "none", *TRACKERS]}
        return [trackers, {"list of": [trackers]}, *null]
    if field.name in ("log_level", "log_level_replica"):
        return [{"one of": list(trainer_log_levels)}, *null]
    if field.metadata.get("choices"):
        return [{"one of": list(field.metadata["choices"])}, *null]
    if enums:  # `SchedulerType | str`: the str is how the enum is written, not any text
        return [{"one of": [item.value for member in enums for item in member]}]
    if list[DebugOption] in members:
        return ["str", {"list of": [{"one of": [item.value for item in DebugOption]}]}]
    return [_spec(member) for member in members]


def _spec(hint: Any) -> Any:
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"one of": list(arguments)}
    if origin is list:
        return {"list of": [_spec(arguments[0])]}
    if origin is dict:
        return "dict"
    raise TypeError(f"a type that the table has no word for: {hint}")


if __name__ == "__main__":
    table = installed_fields()
    lines = [
        f"  {json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}" for name, entry in table["fields"].items()
    ]
    head = f'{{"transformers": {json.dumps(table["transformers"])},\n "fields": {{\n'
    Path(TABLE).write_text(head + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
