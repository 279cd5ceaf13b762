"""Recipes that come with mmhf are found by name from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmhf.errors import InputError
from mmhf.recipe import load_recipe
from mmhf.recipe.shipped import is_recipe, shipped_recipes, summary_of

ROOT = Path(__file__).parents[2]


def test_all_of_them_have_names_and_summaries() -> None:
    found = shipped_recipes()
    assert {path.resolve() for path in found.values()} == set((ROOT / "recipes").rglob("*.yaml"))
    assert found["fakeddit/v1.6"].name == "v1.6.yaml"
    assert all(10 < len(summary_of(path)) < 300 for path in found.values())
    assert (
        summary_of(found["quickstart/fusion"]) == "Does this name belong to this drawing? A fusion classifier on the "
        "embedded sample data: pretrained EfficientNet-Lite0 and MiniLM, frozen, then MiniLM's last layer unfrozen"
    )


@pytest.mark.parametrize("name", ["quickstart/fusion", "quickstart/fusion.yaml"])
def test_found_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = load_recipe(name, ["training.seed=3"])
    assert resolved.name == "fusion" and resolved.recipe.training["seed"] == 3


def test_a_file_of_the_same_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    Path("quickstart/fusion.yaml").write_text("task: image-classification\ndata: {source: sample}\n")
    assert load_recipe("quickstart/fusion.yaml").recipe.task == "image-classification"


def test_a_recipe_extends_one_by_name(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("extends: fakeddit/v1.7\ntraining: {seed: 7}\n")
    resolved = load_recipe(path)
    assert resolved.recipe.training["seed"] == 7 and resolved.recipe.init_from == "releases/fakeddit@v1.6"


@pytest.mark.parametrize(
    ("name", "says"),
    [("quickstart/fusoin", "did you mean quickstart/fusion?"), ("fusion", "or quickstart/fusion?"),
     ("nothing_like_it", "mmhf init --list")],
)  # fmt: skip
def test_a_mistyped_name(name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such recipe file") as raised:
        load_recipe(name)
    assert says in str(raised.value)


def test_what_is_a_recipe_among_tables(tmp_path: Path) -> None:
    assert is_recipe("any.yaml") and is_recipe("dermatology/fusion")
    assert not is_recipe("table.csv") and not is_recipe(tmp_path)
