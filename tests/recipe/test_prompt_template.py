"""Prompts that name columns: how they are filled, and what a recipe refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmhf.errors import InputError
from mmhf.recipe.prompt_template import PromptTemplate

HEAD = "task: image-captioning\ndata: {source: table, path: t.csv}\n"


def test_a_template_is_filled_with_a_rows_values() -> None:
    template = PromptTemplate("A {kind} of {maker name} {{{kind}}}:")
    assert template.names == ["kind", "maker name"]
    assert template.fill({"kind": " cat ", "maker name": 3.0}) == "A cat of 3 {cat}:"
    assert template.fill(template.usual_row()) == "A kind of maker name {kind}:"
    assert template.describe() == {"kind": "text", "maker name": "text"}


def test_a_missing_value_is_named_blank_or_refused() -> None:
    assert PromptTemplate("A {kind}:", "thing").fill({"kind": None}) == "A thing:"
    assert PromptTemplate("A {kind}:", "").fill({"kind": "  "}) == "A :"
    assert PromptTemplate("A {kind}:", "thing").notes({}) == ["kind: is missing; the prompt has 'thing' for it"]
    template = PromptTemplate("A {kind}:")
    assert template.find_problem({}) == "columns.kind: is missing, and the prompt needs it"
    assert template.find_problem({"kind": "a"}) is None and template.notes({"kind": "a"}) == []
    with pytest.raises(InputError, match="columns.kind: expected a text, got a list"):
        template.fill({"kind": ["a"]})
    with pytest.raises(InputError, match="columns.knd: the prompt names no such column; did you mean kind"):
        template.fill({"kind": "a", "knd": "b"})


@pytest.mark.parametrize(
    ("task", "change", "expected"),
    [
        ("image-captioning", "", "model.prompt: `data.questions` gives answers; name the column of their questions"),
        ("image-captioning", "data.keywords=true", "data: keywords adds a caption, and with `questions` there are"),
        ("contrastive", "", "data.questions: gives answers, which say nothing without their questions"),
    ],
)
def test_questions_that_are_not_asked_are_refused(
    problems: Callable[..., list[str]], task: str, change: str, expected: str
) -> None:
    text = f"task: {task}\ndata: {{source: sample, questions: true}}\n"
    (found,) = problems(text, *([change] if change else []))
    assert expected in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {prompt: 'A {kind'}", "model: prompt: the brace { at character 3 has no partner; write {{"),
        ("model: {prompt: 'A kind}'}", "model: prompt: the brace } at character 7 has no partner; write }}"),
        ("model: {prompt: 'A {}:'}", "model: prompt: {} at character 3 names no column"),
        ("model: {prompt: 'A', prompt_missing: b}", "model: `prompt_missing` is for a `prompt` that names columns"),
        ("evaluation: {answers: true}", "evaluation.answers: an answer has a question; name its column"),
        ("model: {prompt: 'A {caption}'}", "model.prompt: 'caption' is the caption, which would be given away"),
    ],
)
def test_a_recipe_with_another_prompt_is_refused(
    problems: Callable[[str], list[str]], text: str, expected: str
) -> None:
    (found,) = problems(f"{HEAD}{text}\n")
    assert found.startswith(f"r.yaml:3: {expected}"), found
