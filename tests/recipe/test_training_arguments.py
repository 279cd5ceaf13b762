from __future__ import annotations

import dataclasses
import json

import pytest
import transformers
from make_training_fields import installed_fields
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from mmhf.recipe.node import Origin
from mmhf.recipe.training_arguments import (
    CONTROLLED,
    REMOVED,
    TABLE,
    TRACKERS,
    training_default,
    training_fields,
    training_problems,
)

_WRITTEN_FROM = json.loads(TABLE.read_text(encoding="utf-8"))["transformers"]


def lines(**values: object) -> list[str]:
    return [
        problem.line(Origin("r.yaml", 1)).removeprefix("r.yaml:1: training.") for problem in training_problems(values)
    ]


def test_every_field_is_either_known_or_controlled() -> None:
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    known = set(training_fields()) | set(CONTROLLED)
    # An older version may lack some, which `training_arguments` says.
    assert known == names if transformers.__version__ == _WRITTEN_FROM else known >= names
    assert set(training_fields()).isdisjoint(CONTROLLED)


def test_removed_names_are_really_gone_and_name_fields_that_exist() -> None:
    assert set(REMOVED).isdisjoint(training_fields())


def test_trackers_are_those_of_transformers() -> None:
    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK)


def test_the_defaults_are_valid() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    shared = training_fields().keys() & defaults.keys()
    given = {name: defaults[name] for name in shared if defaults[name] is not dataclasses.MISSING}
    assert lines(**given) == []


def test_values_that_users_write_are_valid() -> None:
    assert not lines(
        learning_rate=2e-5,
        num_train_epochs=3,
        warmup_steps=0.1,
        eval_strategy="epoch",
        save_strategy="best",
        report_to=["mlflow", "wandb"],
        lr_scheduler_type="cosine",
        lr_scheduler_kwargs={"num_cycles": 1},
        optim="sgd",
        fsdp_config={"a": 1},
        bf16=True,
        debug=["underflow_overflow"],
        data_seed=None,
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learnin_rate", 1, "learnin_rate: unknown key; got 1; did you mean learning_rate?"),
        ("learning_rate", "2e-5", "learning_rate: must be a number (write it without quotes); got '2e-5'"),
        ("learning_rate", -1, "learning_rate: must be greater than or equal to 0; got -1"),
        ("learning_rate", True, "learning_rate: must be a number; got true"),
        ("seed", 1.0, "seed: must be a whole number; got 1.0"),
        ("bf16", 1, "bf16: must be true or false; got 1"),
        ("weight_decay", float("inf"), "weight_decay: must be a finite number; got inf"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size: must be greater than 0; got 0"),
        ("eval_strategy", "epochs", "eval_strategy: must be no, steps or epoch; got 'epochs'; did you mean epoch?"),
        ("optim", "adamw_torhc", "optim: unknown value; got 'adamw_torhc'; did you mean adamw_torch?"),
        ("report_to", ["wandbb"], "report_to.0: unknown value; got 'wandbb'; did you mean wandb?"),
        ("report_to", "mlfow", "report_to: unknown value; got 'mlfow'; did you mean mlflow?"),
        ("run_name", 3, "run_name: must be text (put it in quotes); got 3"),
        ("output_dir", ["a"], 'output_dir: must be text; got ["a"]'),
        (
            "warmup_ratio",
            0.1,
            "warmup_ratio: removed from transformers; write the share as `warmup_steps` below 1; got 0.1",
        ),
        (
            "evaluation_strategy",
            "no",
            "evaluation_strategy: removed from transformers; write `eval_strategy`; got 'no'",
        ),
        ("no_cuda", True, "no_cuda: removed from transformers; write `use_cpu`; got true"),
        ("batch_size", 8, "batch_size: not a field of TrainingArguments; write `per_device_train_batch_size`; got 8"),
        (
            "remove_unused_columns",
            False,
            "remove_unused_columns: set by mmhf, whose collators choose the columns; got false",
        ),
    ],
)
def test_each_wrong_field_is_explained(name: str, value: object, expected: str) -> None:
    assert lines(**{name: value}) == [expected]


def test_the_table_is_that_of_the_installed_version() -> None:
    """Of another version: what both have is the same, so that nothing is promised that is refused."""
    table, installed = json.loads(TABLE.read_text(encoding="utf-8")), installed_fields()
    both = table["fields"].keys() & installed["fields"].keys()
    assert len(both) > 80
    for name in both:
        assert table["fields"][name]["type"] == installed["fields"][name]["type"], name
    if table["transformers"] == installed["transformers"]:
        assert table == installed, "run tests/make_training_fields.py"


def test_defaults_are_known_without_transformers() -> None:
    assert training_default("per_device_train_batch_size") == 8 and training_default("no_such_field") is None
