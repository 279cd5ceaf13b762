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


SECRETS = [
    "postgresql://" + "someone:hunter22" + "@db.example.org/mlflow",
    "https://example.org/?" + "token=" + "hunter22hunter22",
    "hf_" + "hunter22" * 5,
    "ghp_" + "hunter22" * 5,
    "sk-ant-" + "api03-" + "hunter22" * 5,
    "-----BEGIN " + "OPENSSH PRIVATE KEY-----hunter22",
]
_QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart" / "fusion.yaml"


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
@pytest.mark.parametrize("key", ["tracking.mlflow_uri", "training.run_name", "release.card.summary", "data.nonsense"])
def test_a_secret_anywhere_in_a_recipe_is_refused_by_key_and_never_repeated(secret: str, key: str):
    with pytest.raises(InputError, match=key) as caught:
        load_recipe(_QUICKSTART, [f"{key}={secret}"])
    assert "hunter22" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_secret_in_a_file_is_named_by_its_line(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(_QUICKSTART.read_text() + f"tracking:\n  mlflow_uri: {SECRETS[0]}\n")
    line = len(path.read_text().splitlines())
    with pytest.raises(InputError, match=f"recipe.yaml:{line}: tracking.mlflow_uri: the postgresql:// URL holds"):
        load_recipe(path)
