"""`model.columns` of a recipe: what is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmhf.recipe import ResolvedRecipe
from mmhf.recipe.fusion_recipe import FusionModelSection

HEAD = "task: image-text-classification\ndata: {source: table, path: t.csv}\n"

Problems = Callable[[str], list[str]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {columns: {}}", "model.columns: name columns in `numbers`, `categories` or both"),
        ("model: {columns: {numbers: [a], categories: [a]}}", "model.columns: 'a' is named twice"),
        ("model: {columns: {numbers: [text]}}", "model.columns: 'text' is read already"),
        ("model: {columns: {numbers: [a], dropout: 0.1}}", "model.columns: dropout 0.1 is for hidden layers"),
        ("model: {columns: {numbers: age}}", "model.columns.numbers: must be a list"),
        (
            "model: {columns: {numbers: [a], nubmers: [b]}}",
            "model.columns.nubmers: unknown key",
        ),
        ("model: {columns: {categories: [label]}}", "model.columns.categories.0: is the label"),
        ("model: {modalities: {mask: columns}}", "model.modalities.mask: there are no columns"),
        ("model: {modalities: {dropout: {columns: 0.1}}}", "model.modalities.dropout.columns: there are no columns"),
        ("loss: {auxiliary_weight: {columns: 0.1}}", "loss.auxiliary_weight.columns: there are no columns"),
        (
            "model: {columns: {numbers: [a]}, modalities: {mask: text, dropout: {text: 0.1}}}",
            "model.modalities.dropout.text: `mask` hides it already",
        ),
        (
            "model: {columns: {numbers: [a]}, modalities: {dropout: {image: 0.5, columns: 0.6}}}",
            "model.modalities.dropout: image + text + columns = 1.1 is above 1",
        ),
    ],
)
def test_each_problem_says_where_and_what(problems: Problems, text: str, expected: str) -> None:
    (found,) = problems(f"{HEAD}{text}\n")
    assert found.startswith(f"r.yaml:3: {expected}"), found


def test_streams_cannot_scale_columns(problems: Problems) -> None:
    stream = "task: image-text-classification\ndata: {source: hub, path: a/b, streaming: true}\n"
    (found,) = problems(f"{stream}model: {{columns: {{numbers: [a]}}}}\n")
    assert found.startswith("r.yaml:2: data.streaming: `model.columns` are scaled by all training rows"), found


def test_beside_columns_one_of_the_others_may_be_hidden_and_dropped(load: Callable[..., ResolvedRecipe]) -> None:
    modalities = "{mask: text, dropout: {image: 0.1, columns: 0.2}}"
    loaded = load(f"{HEAD}model: {{columns: {{numbers: [a], categories: [b]}}, modalities: {modalities}}}\n")
    model = loaded.recipe.model
    assert isinstance(model, FusionModelSection)
    assert model.fused_modalities() == ["image", "columns"] and model.column_names() == ["a", "b"]
    hidden = load(f"{HEAD}model: {{columns: {{numbers: [a]}}, modalities: {{mask: columns}}}}\n").recipe.model
    assert hidden.unused_encoders() == ["columns"]
