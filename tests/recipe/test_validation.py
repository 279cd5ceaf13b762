from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_origin

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmhf.errors import InputError
from mmhf.recipe import recipe_from_dict
from mmhf.recipe.by_task import RECIPE_BY_TASK
from mmhf.recipe.fusion_recipe import FusionRecipe
from mmhf.recipe.schema_tree import alternatives, fields_at, is_section, sections_for
from mmhf.recipe.training_arguments import training_fields

Problems = Callable[..., list[str]]
TASKS = ", ".join([*RECIPE_BY_TASK][:-1]) + f" or {[*RECIPE_BY_TASK][-1]}"
HEAD = "task: image-text-classification\ndata: {source: sample}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "training: {learnin_rate: 2e-5}",
            "training.learnin_rate: unknown key; got 2e-05; did you mean learning_rate?",
        ),
        ("model: {fusion: {dropuot: 0.5}}", "model.fusion.dropuot: unknown key; got 0.5; did you mean dropout?"),
        (
            "dropout: 0.3",
            "dropout: unknown key; got 0.3; did you mean model.lora.dropout or model.fusion.dropout?",
        ),
        (
            "learning_rate: 1",
            "learning_rate: unknown key; got 1; did you mean training.learning_rate or stages.0.learning_rate?",
        ),
        (
            "training: {dropout: 1}",
            "training.dropout: unknown key; got 1; did you mean model.lora.dropout or model.fusion.dropout?",
        ),
        ("tracking: {url: x}", "tracking.url: unknown key, valid are mlflow_uri, log_model; got 'x'"),
        ("model: {embedding_dim: 5.0}", "model.embedding_dim: must be a whole number; got 5.0"),
        ("model: {embedding_dim: true}", "model.embedding_dim: must be a whole number; got true"),
        (
            "model: {embedding_dim: '5'}",
            "model.embedding_dim: must be a whole number (write it without quotes); got '5'",
        ),
        ("model: {embedding_dim: 0}", "model.embedding_dim: must be greater than 0; got 0"),
        ("model: {freeze_text: no}", "model.freeze_text: must be true or false; got 'no'; did you mean false?"),
        ("model: {vision: timm/x}", "model.vision: must be a mapping; got 'timm/x'"),
        ("model: null", "model: must be a mapping; got null"),
        ("init_from: 1.6", "init_from: must be text (put it in quotes); got 1.6"),
        ("stages: {}", "stages: must be a list; got {}"),
        ("stages: []", "stages: must have at least 1 item; got []"),
        ("stages: [{name: a, epochs: 1, train: 3}]", "stages.0.train: must be text or a list; got 3"),
        (
            "stages: [{name: a, epochs: 1, learning_rate: {head: x}}]",
            "stages.0.learning_rate.head: must be a number; got 'x'",
        ),
        (
            "stages: [{name: a, epochs: 1, learning_rate: x}]",
            "stages.0.learning_rate: must be a number or a mapping; got 'x'",
        ),
        (
            "stages: [{name: a, epochs: 1, learning_rate: -1}]",
            "stages.0.learning_rate: must be greater than or equal to 0; got -1",
        ),
        ("stages: [{name: a, epochs: .inf}]", "stages.0.epochs: must be a finite number; got inf"),
        ("stages: [{name: a}]", "stages.0: stage 'a' needs either `epochs` or `steps`"),
        ("stages: [{epochs: 1}]", "stages.0.name: missing"),
        (
            "loss: {class_weights: balancd}",
            "loss.class_weights: must be balanced or a list; got 'balancd'; did you mean balanced?",
        ),
        ("loss: {class_weights: [1, -1]}", "loss.class_weights.1: must be greater than 0; got -1"),
        (
            "evaluation: {splits: [trian]}",
            "evaluation.splits.0: must be train, validation or test; got 'trian'; did you mean train?",
        ),
        ("optimizer: {betas: [0.9]}", "optimizer.betas: must have at least 2 items; got [0.9]"),
        ("optimizer: {betas: [0.9, 1.0]}", "optimizer.betas.1: must be less than 1; got 1.0"),
        ("release: {repo: a, version: 1.10}", "release.version: must be text (put it in quotes); got 1.1"),
        ("training: [1]", "training: must be a mapping; got [1]"),
    ],
)
def test_each_problem_says_where_what_and_the_way_out(problems: Problems, text: str, expected: str) -> None:
    assert problems(f"{HEAD}{text}\n") == [f"r.yaml:3: {expected}"]


SOURCES = "data.source: must be fakeddit, table, clinical, sample, hub or joined"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("{source: fakeddit}", ["data.path: missing"]),
        ("{source: fakeddit, pth: x}", ["data.pth: unknown key for source: fakeddit; got 'x'; did you mean path?"]),
        ("{source: sample, sample: {}}", None),
        # What is no key here is not suggested again because another source has it.
        ("{source: sample, path: x}", ["data.path: unknown key for source: sample, valid are "]),
        (
            "{source: smaple, nonsense: 1}",
            [f"{SOURCES}; got 'smaple'; did you mean sample?"],
        ),
        ("{source: [1]}", [f"{SOURCES}; got [1]"]),
        ("{path: x}", ["data.source: missing, must be fakeddit, table, clinical, sample, hub or joined"]),
        (
            "{sorce: sample}",
            [
                "data.source: missing, must be fakeddit, table, clinical, sample, hub or joined",
                "data.sorce: unknown key; got 'sample'; did you mean source?",
            ],
        ),
        (
            "{source: hub, path: x, splits: {trian: a}}",
            ["data.splits.trian: must be train, validation or test; got 'tr"],
        ),
        (
            "{source: table, columns: {imag: a}, path: x}",
            ["data.columns.imag: unknown key; got 'a'; did you mean image?"],
        ),
        ("{source: table}", ["data: give either `path`"]),
        ("{source: sample, augment: {affine: {scale: [2, 1]}}}", ["data.augment.affine: scale = [2.0, 1.0] must be"]),
        ("sample", ["data: must be a mapping; got 'sample'"]),
    ],
)
def test_a_source_is_judged_by_its_own_keys(problems: Problems, data: str, expected: list[str] | None) -> None:
    lines = problems(f"task: image-text-classification\ndata: {data}\n")
    if expected is None:
        assert lines[0].startswith("r.yaml:2: data.sample: unknown key for source: sample, valid are")
        return
    assert len(lines) == len(expected)
    assert all(line.startswith(f"r.yaml:2: {start}") for line, start in zip(lines, expected, strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {}\n", [f"r.yaml:1: task: missing, must be {TASKS}"]),
        (
            "tsk: image-text-classification\ndata: {}\n",
            [
                f"r.yaml:1: task: missing, must be {TASKS}",
                "r.yaml:1: tsk: unknown key; got 'image-text-classification'; did you mean task?",
            ],
        ),
        (
            "task: image-txt-classification\n",
            [
                f"r.yaml:1: task: must be {TASKS};"
                " got 'image-txt-classification'; did you mean image-text-classification?"
            ],
        ),
        ("task: [a]\n", [f'r.yaml:1: task: must be {TASKS}; got ["a"]']),
        ("task: image-text-classification\n", ["r.yaml:1: data: missing"]),
    ],
)
def test_an_absent_or_wrong_task_lists_the_valid_ones(problems: Problems, text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_all_problems_come_at_once_in_the_order_of_the_file(problems: Problems) -> None:
    text = "task: image-text-classification\nmodl: {}\ndata:\n  source: sample\n  limit: -1\ntraining:\n  sed: 1\n"
    lines = problems(text, "loss.label_smoothing=2", "training.lr=1")
    assert [line.split(":")[1].strip() if line.startswith("r.yaml") else line[:8] for line in lines] == [
        "2",
        "5",
        "7",
        "override",
        "override",
    ]
    assert "override loss.label_smoothing=2: loss.label_smoothing: must be less than or equal to 1; got 2" in lines


def _values_and_keys() -> Iterator[tuple[dict[str, Any], tuple[str | int, ...], str]]:
    """A valid recipe, the path of one of its sections, and a key that this section may have."""
    for source in (
        {"source": "fakeddit", "path": "x"},
        {"source": "table", "path": "x"},
        {"source": "hub", "path": "x"},
    ):
        values = {"task": "image-text-classification", "data": source}
        yield from ((values, path, key) for path, key in _section_keys(FusionRecipe, (), values))
        yield from ((values, ("training",), key) for key in training_fields())


def _section_keys(
    annotation: Any, path: tuple[str | int, ...], values: dict[str, Any]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    value = values["data"] if path == ("data",) else values if not path else {}
    for section in sections_for(annotation, value):
        for key, field in section.model_fields.items():
            yield path, key
            for member in alternatives(field.annotation):
                item = get_args(member)[0] if get_origin(member) is list else member
                if is_section(item):
                    yield from _section_keys(field.annotation if item is member else item, (*path, key), values)


_KEYS = list(_values_and_keys())
_LISTS = ("stages", "history")


def _mistype(key: str, position: int, letter: str, kind: str) -> str:
    position %= len(key)
    before, here, after = key[:position], key[position], key[position + 1 :]
    if kind == "swap":
        return before + after[:1] + here + after[1:]
    return before + {"insert": letter + here, "delete": "", "replace": letter}[kind] + after


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(_KEYS),
    st.integers(0, 40),
    st.sampled_from(string.ascii_lowercase + "_"),
    st.sampled_from(["insert", "delete", "replace", "swap"]),
)
@pytest.mark.slow
def test_a_typing_error_in_any_key_names_that_key(
    place: tuple[dict[str, Any], tuple[str | int, ...], str], position: int, letter: str, kind: str
) -> None:
    values, path, key = place
    typo = _mistype(key, position, letter, kind)
    known = training_fields() if path == ("training",) else fields_at(FusionRecipe, path, values)
    assume(typo and typo != key and typo not in known)
    recipe: Any = {**values, "data": dict(values["data"])}
    section = recipe
    for part in path:
        is_list = part in _LISTS
        section = section.setdefault(part, [{}] if is_list else {})
        section = section[0] if is_list else section
    section[typo] = section.pop(key, 1)
    with pytest.raises(InputError) as raised:
        recipe_from_dict(recipe, name="r")
    shown_path = ".".join([f"{part}.0" if part in _LISTS else str(part) for part in path] + [typo])
    [line] = [line for line in str(raised.value).split("\n") if line.startswith(f"r: {shown_path}: unknown key")]
    assert key in line.split("did you mean ")[1].rstrip("?").split(" or ")


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted({key for _, _, key in _KEYS} | {"fakeddit", "table", "hub", "[key]", "str"})),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(_KEYS), _ANYTHING)
@pytest.mark.slow
def test_no_value_crashes_the_validation(
    place: tuple[dict[str, Any], tuple[str | int, ...], str], value: object
) -> None:
    values, path, key = place
    recipe: Any = {**values, "data": dict(values["data"])}
    section = recipe
    for part in path:
        section = section.setdefault(part, {})
    section[key] = value
    try:
        recipe_from_dict(recipe, name="r")
    except InputError as error:
        assert all(line.startswith("r: ") for line in str(error).split("\n"))
