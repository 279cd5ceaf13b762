"""The `training:` section: the fields of `transformers.TrainingArguments`, by their own names and types."""

from __future__ import annotations

import functools
import json
import operator
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mmhf.recipe.node import KeyPath, Node, Problem, shown
from mmhf.recipe.schema_tree import Annotation
from mmhf.recipe.validation import unknown_key, value_problems

TABLE = Path(__file__).with_name("training_fields.json")
"""Name, types, default and help of each field: importing TrainingArguments takes seconds, reading this takes none. A
test compares it with the installed version; `tests/make_training_fields.py` writes it."""

# Importing transformers.integrations for its list takes as long as importing torch; a test compares the two.
TRACKERS = (
    *("azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "neptune"),
    *("swanlab", "tensorboard", "trackio", "wandb"),
)

REMOVED = {
    "warmup_ratio": "removed from transformers; write the share as `warmup_steps` below 1",
    "evaluation_strategy": "removed from transformers; write `eval_strategy`",
    "save_safetensors": "removed from transformers, models are always saved as safetensors",
    "overwrite_output_dir": "removed from transformers; give another `output_dir` or continue the run in it",
    "no_cuda": "removed from transformers; write `use_cpu`",
    "use_mps_device": "removed from transformers, MPS is found by itself (`use_cpu: true` turns it off)",
    "group_by_length": "removed from transformers; write `train_sampling_strategy: group_by_length`",
    "logging_dir": "removed from transformers; set the environment variable TENSORBOARD_LOGGING_DIR",
    "fp16_backend": "removed from transformers, `fp16: true` is enough",
    "half_precision_backend": "removed from transformers, `fp16: true` or `bf16: true` is enough",
    "fp16_opt_level": "removed from transformers, `fp16: true` is enough",
    "push_to_hub_model_id": "removed from transformers; write `hub_model_id`",
    "push_to_hub_organization": "removed from transformers; write `hub_model_id: ORGANISATION/NAME`",
    "push_to_hub_token": "removed from transformers; run `hf auth login` or set HF_TOKEN",
    "per_gpu_train_batch_size": "removed from transformers; write `per_device_train_batch_size`",
    "per_gpu_eval_batch_size": "removed from transformers; write `per_device_eval_batch_size`",
    "batch_size": "not a field of TrainingArguments; write `per_device_train_batch_size`",
    "eval_batch_size": "not a field of TrainingArguments; write `per_device_eval_batch_size`",
    "epochs": "not a field of TrainingArguments; write `num_train_epochs`",
    "lr": "not a field of TrainingArguments; write `learning_rate`",
}

CONTROLLED = {
    "remove_unused_columns": "set by mmhf, whose collators choose the columns",
    "label_names": "set by mmhf from the task",
    "do_train": "set by the command: `mmhf train` trains",
    "do_eval": "set by the command and `eval_strategy`",
    "do_predict": "set by the command: `mmhf predict` predicts",
    "local_rank": "set by the launcher (`accelerate launch`, `torchrun`)",
    "hub_token": "does not belong in a recipe, which is kept and released; run `hf auth login` or set HF_TOKEN",
    "parallelism_config": "cannot be written in a recipe; name it in the configuration of `accelerate launch`",
}

_SECRETS = ("hub_token", "push_to_hub_token")
"""Whose values no message shows."""

_POSITIVE, _NOT_NEGATIVE, _SHARE = Field(gt=0), Field(ge=0), Field(ge=0, le=1)
_BOUNDS = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs"), _POSITIVE),
    **dict.fromkeys(("gradient_accumulation_steps", "logging_steps", "save_steps", "eval_steps"), _POSITIVE),
    **dict.fromkeys(("save_total_limit", "eval_accumulation_steps", "torch_empty_cache_steps"), _POSITIVE),
    **dict.fromkeys(("adam_epsilon", "ddp_timeout", "dataloader_prefetch_factor"), _POSITIVE),
    **dict.fromkeys(("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "eval_delay"), _NOT_NEGATIVE),
    **dict.fromkeys(("dataloader_num_workers", "seed", "data_seed"), _NOT_NEGATIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), _SHARE),
    "max_steps": Field(ge=-1),
}


def training_problems(values: dict[str, Any], elsewhere: Iterable[tuple[str, str]] = ()) -> list[Problem]:
    """What is wrong with the fields of a `training:` section.

    Args:
        values: field name → value, as read from a recipe.
        elsewhere: (key, dotted path) pairs that are suggested for a key of another section.

    Returns:
        A problem for each unknown, removed or reserved field and for each value of the wrong type. Whole numbers are
        accepted where TrainingArguments says float; nothing else is converted.
    """
    fields = training_fields()
    problems: list[Problem] = []
    for name, value in values.items():
        key = ("training", name)
        is_secret = name in _SECRETS
        got = None if is_secret else shown(value)
        if name in CONTROLLED:
            problems.append(Problem(key, CONTROLLED[name], got, is_secret=is_secret))
        elif name in fields:
            problems += _field_problems(key, value, fields[name])
        elif name in REMOVED:
            problems.append(Problem(key, REMOVED[name], got, is_secret=is_secret))
        else:
            problems.append(unknown_key(key, value, fields, elsewhere=elsewhere))
    return problems


def without_unset_fields(tree: Node) -> Node:
    """The recipe without fields of `training:` that are null where TrainingArguments takes no null.

    So `num_train_epochs: null` takes an inherited value away: TrainingArguments' default holds again.
    """
    training = tree.child("training")
    if training is None or not isinstance(training.value, dict):
        return tree
    fields = training_fields()
    given = {
        name: child
        for name, child in training.value.items()
        if not (child.value is None and name in fields and not _takes_null(fields[name]))
    }
    return Node({**tree.value, "training": Node(given, training.origin)}, tree.origin)


@functools.cache
def training_fields() -> dict[str, Annotation]:
    """The fields that a recipe may set: name → annotation, with enums as the literals of their values."""
    return {name: _annotation(name, field["type"]) for name, field in _table().items()}


def training_json_schema() -> dict[str, Any]:
    """The JSON Schema of the `training:` section, with the help texts of TrainingArguments."""
    properties: dict[str, Any] = {}
    for name, annotation in training_fields().items():
        schema, field = TypeAdapter(annotation).json_schema(), _table()[name]
        if "help" in field:
            schema["description"] = field["help"]
        if "default" in field:
            schema["default"] = field["default"]
        properties[name] = schema if _takes_null(annotation) else {"anyOf": [schema, {"type": "null"}]}
    return {
        "type": "object",
        "title": "transformers.TrainingArguments",
        "properties": properties,
        "additionalProperties": False,
    }


def training_default(name: str) -> Any:
    """TrainingArguments' own default of a field; None where it has none that is a plain value."""
    return _table().get(name, {}).get("default")


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    fields: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))["fields"]
    return fields


_TYPES = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "null": None,
    "dict": dict[str, Any],
    "list": list[Any],
}


def _annotation(name: str, members: list[Any]) -> Annotation:
    if name in _BOUNDS:
        bounded: Annotation = Annotated[_member(members[0]), _BOUNDS[name]]
        return bounded | None if "null" in members else bounded
    return functools.reduce(operator.or_, (_member(member) for member in members))


def _member(member: Any) -> Annotation:
    if isinstance(member, str):
        return _TYPES[member]
    if "one of" in member:
        return Literal[tuple(member["one of"])]
    return list[_member(member["list of"][0])]  # type: ignore[misc]


def _takes_null(annotation: Annotation) -> bool:
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return type(None) in (get_args(annotation) if is_union else (annotation,))


@functools.cache
def _adapter(annotation: Annotation) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def _field_problems(path: KeyPath, value: object, annotation: Annotation) -> list[Problem]:
    try:
        _adapter(annotation).validate_python(value)
    except ValidationError as error:
        return value_problems(error, value, path)
    return []
