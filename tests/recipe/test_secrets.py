from __future__ import annotations

from pathlib import Path

import pytest

from mmhf.errors import InputError
from mmhf.recipe import load_recipe


@pytest.mark.parametrize("name", ["hub_token", "push_to_hub_token"])
def test_a_token_has_no_place_in_a_recipe_and_is_not_repeated(tmp_path: Path, name: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"task: image-classification\ntraining: {{{name}: very-secret}}\n")
    for overrides in ([], [f"training.{name}=very-secret"]):
        with pytest.raises(InputError, match=f"training.{name}: .*hf auth login") as caught:
            load_recipe(path, overrides)
        assert "very-secret" not in str(caught.value)
