from __future__ import annotations

from mmhf.inference.captioning import GENERATION_OPTIONS
from mmhf.recipe.captioner_recipe import GenerationSection


def test_a_captioner_is_asked_with_the_keys_of_its_recipe():
    assert set(GENERATION_OPTIONS) == set(GenerationSection.model_fields)
