from __future__ import annotations

import pytest
from pydantic import ValidationError

from mmhf.recipe.captioner_sections import GenerationSection


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.7}, "`temperature` is for sampling; set `do_sample: true`"),
        ({"top_k": 5}, "`top_k` is for sampling"),
        ({"length_penalty": 2.0}, "`length_penalty` is for beams"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        GenerationSection(**values)


@pytest.mark.parametrize(
    "values", [{}, {"do_sample": True, "temperature": 0.7}, {"num_beams": 3, "length_penalty": 2.0}]
)
def test_a_resolved_recipe_names_its_defaults_and_is_read_again(values):
    section = GenerationSection(**values)
    assert GenerationSection(**section.model_dump()) == section
