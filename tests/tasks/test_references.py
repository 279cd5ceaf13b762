"""Which encoders a run's model is saved without: what no stage trains, and can be had again."""

from __future__ import annotations

from typing import Any

import pytest
from few_bits import in_few_bits
from saved_families import FAMILIES

from mmhf.recipe.resolve import recipe_from_dict
from mmhf.tasks.references import references_of

BACKBONES = {"vision": "timm/test_efficientnet", "text": "pypi/all-minilm-l6-v2"}
RELEASE = {"repo": "x", "version": "1.0"}


def found(model: Any, *, train: list[str], all_frozen: bool = False, **changes: Any) -> set[str]:
    """The encoders that the model of a recipe with these stages refers to, which are where the recipe says."""
    values = {
        "task": "image-text-classification",
        "model": {name: {"backbone": backbone} for name, backbone in BACKBONES.items()},
        "data": {"source": "sample"},
        "stages": [{"name": "head", "epochs": 1, "train": ["head"]}, {"name": "more", "epochs": 1, "train": train}],
    }
    recipe = recipe_from_dict({**values, **changes}, name="r").recipe
    references = references_of(recipe, model, all_frozen=all_frozen)
    assert references.items() <= BACKBONES.items()
    return set(references)


@pytest.fixture(scope="module")
def full() -> Any:
    return FAMILIES["fusion"].make()[0]


def test_weights_of_few_bits_and_all_frozen_ones_where_the_task_says_so(full: Any) -> None:
    few = in_few_bits(full, parts=["text"])
    assert found(full, train=["fusion"]) == set()
    assert found(few, train=["fusion", "vision"]) == {"text"}
    assert found(full, train=["fusion"], all_frozen=True) == {"vision", "text"}
    assert found(full, train=["fusion", "vision:last 1"], all_frozen=True) == {"text"}
    assert found(few, train=["fusion"], release={**RELEASE, "include_frozen": True}) == set()
    # What the parent stores may be what it trained.
    assert found(few, train=["fusion"], init_from="releases/x@v1") == set()


def test_what_the_parent_referred_to_until_a_stage_trains_it(full: Any) -> None:
    full.refer_to(BACKBONES)
    assert found(full, train=["fusion"], init_from="releases/x@v1") == {"vision", "text"}
    assert found(full, train=["fusion", "text:last 1"], init_from="releases/x@v1") == {"vision"}
    full.refer_to({})
