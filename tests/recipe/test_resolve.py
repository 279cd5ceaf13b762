from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmhf.errors import InputError
from mmhf.recipe import ResolvedRecipe, load_recipe, recipe_from_dict

Load = Callable[..., ResolvedRecipe]
Problems = Callable[..., list[str]]
Write = Callable[..., str]

FAKEDDIT = """\
task: image-text-classification
model:
  fusion: {hidden_dims: [256], dropout: 0.5}
data:
  source: fakeddit
  path: data/fakeddit
  label: 3_way_label
  image_size: 192
  augment: {horizontal_flip: 0.5}
training:
  learning_rate: 2e-5
  seed: 1
stages:
  - {name: head, epochs: 5, train: [head], learning_rate: {vision: 1e-5, head: 1e-3}}
  - {name: all, epochs: 10}
release: {repo: releases/fakeddit, version: "1.8"}
"""


def test_values_types_and_provenance(load: Load) -> None:
    resolved = load(
        FAKEDDIT, "training.seed=7", "model.fusion.hidden_dims.0=64", "stages.1.steps=3", "~stages.1.epochs"
    )
    recipe = resolved.recipe
    assert resolved.name == "r"
    assert resolved.path == Path("r.yaml")
    assert recipe.training == {"learning_rate": 2e-5, "seed": 7}
    assert recipe.stages is not None
    assert recipe.stages[0].learning_rate == {"vision": 1e-5, "head": 1e-3}
    assert (recipe.stages[1].epochs, recipe.stages[1].steps) == (None, 3)
    expected = {
        "task": "r.yaml:1",
        "model.fusion.hidden_dims": "override",
        "model.fusion.dropout": "r.yaml:3",
        "model.fusion.strategy": "default",
        "data.augment.horizontal_flip": "r.yaml:9",
        "data.augment.rotation": "default",
        "training.learning_rate": "r.yaml:11",
        "training.seed": "override",
        "stages.0.learning_rate.head": "r.yaml:14",
        "stages.0.train": "r.yaml:14",
        "stages.1.steps": "override",
        "stages.1.epochs": "default",
        "optimizer": "default",
    }
    assert {key: resolved.provenance.get(key) for key in expected} == expected


def test_the_resolved_yaml_reruns_the_run(load: Load) -> None:
    first = load(FAKEDDIT, "training.learning_rate=1e-7", "release.version=1.10")
    second = load(first.to_yaml())
    assert second.recipe == first.recipe
    assert second.to_yaml() == first.to_yaml()
    assert "default" not in second.provenance.values()


def test_extends_merges_mappings_and_replaces_lists(write: Write) -> None:
    write(FAKEDDIT, "recipes/base.yaml")
    write("extends: base.yaml\ndata: {augment: null}\nmodel: {fusion: {hidden_dims: []}}\n", "recipes/mid.yaml")
    leaf = write(
        "extends: ../mid.yaml\ntraining: {seed: 3}\nstages:\n- {name: x, epochs: 1}\n", "recipes/deep/leaf.yaml"
    )
    resolved = load_recipe(leaf, ["data.limit=10"])
    recipe = resolved.recipe
    assert recipe.training == {"learning_rate": 2e-5, "seed": 3}
    assert recipe.data.augment is None
    assert (recipe.model.fusion.hidden_dims, recipe.model.fusion.dropout) == ([], 0.5)
    assert recipe.stages is not None
    assert [stage.name for stage in recipe.stages] == ["x"]
    where = resolved.provenance
    assert where["training.seed"] == "recipes/deep/leaf.yaml:2"
    assert where["training.learning_rate"] == "recipes/base.yaml:11"
    assert where["data.augment"] == "recipes/mid.yaml:2"
    assert where["data.limit"] == "override"
    assert "extends" not in resolved.to_yaml()


def test_null_takes_an_inherited_training_field_away(write: Write) -> None:
    write(f"{FAKEDDIT.split('stages:')[0]}  num_train_epochs: 3\n  save_total_limit: 2\n", "base.yaml")
    child = write(
        "extends: base.yaml\ntraining: {num_train_epochs: null, save_total_limit: null}\n"
        "stages: [{name: a, epochs: 1}]\n",
        "child.yaml",
    )
    assert load_recipe(child).recipe.training == {"learning_rate": 2e-5, "seed": 1, "save_total_limit": None}
    with pytest.raises(InputError, match="must be a whole number; got null"):
        load_recipe(child, ["model.embedding_dim=null"])


def test_another_source_drops_what_belonged_to_the_old_one(write: Write) -> None:
    write(FAKEDDIT, "base.yaml")
    child = write("extends: base.yaml\ndata: {source: table, train: t.csv}\n", "child.yaml")
    by_file = load_recipe(child).recipe.data
    by_override = load_recipe("base.yaml", ["data.train=t.csv", "data.source=table"]).recipe.data
    assert by_file == by_override
    assert (by_file.source, by_file.image_size, by_file.path) == ("table", 192, None)
    kept = load_recipe("base.yaml", ["data.path=t.csv", "data.source=table"]).recipe.data
    assert kept.path == "t.csv"
    assert load_recipe("base.yaml", ["data.source=sample"]).recipe.data.source == "sample"


def test_an_override_replaces_the_source_of_a_resolved_recipe(load: Load) -> None:
    resolved = load(load(FAKEDDIT).to_yaml(), "data.source=table", "data.test=t.csv")
    assert resolved.recipe.data.source == "table"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"r.yaml": "extends: r.yaml"}, "r.yaml:1: extends: recipes extend each other in a circle: r.yaml -> r.yaml"),
        (
            {"r.yaml": "extends: b.yaml", "b.yaml": "\nextends: ./r.yaml"},
            "b.yaml:2: extends: recipes extend each other",
        ),
        (
            {"r.yaml": "extends: bse.yaml", "base.yaml": ""},
            "extends: bse.yaml: no such recipe file; did you mean base.y",
        ),
        ({"r.yaml": "extends: [a]"}, 'r.yaml:1: extends: must be the path of a recipe; got ["a"]'),
        ({"r.yaml": "extends: b.yaml", "b.yaml": "- 1"}, "b.yaml:1: a recipe must be a mapping; got [1]"),
        ({"r.yaml": "# nothing\n"}, "r.yaml: the recipe is empty"),
        ({"r.yaml": "just text"}, "r.yaml:1: a recipe must be a mapping; got 'just text'"),
    ],
)
def test_files_that_cannot_be_followed(write: Write, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        write(text, name)
    with pytest.raises(InputError) as raised:
        load_recipe("r.yaml")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("recipes/fakedit.yaml", "no such recipe file; did you mean recipes/fakeddit.yaml?"),
        ("recipes/fakeddit", "no such recipe file; did you mean recipes/fakeddit.yaml?"),
        ("recipe/quick/fusion.yaml", "no such recipe file"),
        ("recipes/quik/fusion.yaml", "did you mean recipes/quick/fusion.yaml?"),
        ("recipes", "recipes: is a folder, not a recipe file; did you mean recipes/fakeddit.yaml or recipes/quick/"),
        ("recipes/" + "x" * 3000, "no such recipe file"),
        ("recipes/a\0b.yaml", "no such recipe file"),
    ],
)
@pytest.mark.slow
def test_a_missing_recipe_names_those_nearby(write: Write, asked: str, message: str) -> None:
    write(FAKEDDIT, "recipes/fakeddit.yaml")
    write(FAKEDDIT, "recipes/quick/fusion.yaml")
    with pytest.raises(InputError) as raised:
        load_recipe(asked)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_recipe_from_python() -> None:
    values = {"task": "image-text-classification", "data": {"source": "sample"}, "model": {"fusion": {"dropout": 0}}}
    resolved = recipe_from_dict(values, name="demo")
    assert (resolved.name, resolved.path) == ("demo", None)
    assert resolved.recipe.data.image_size == 96
    assert resolved.provenance["model.fusion.dropout"] == "demo"
    values["data"] = {"source": "sample", 3: 4}
    with pytest.raises(InputError, match=r"demo: data\.3: a key must be text; got 3"):
        recipe_from_dict(values, name="demo")
    values["data"] = {"source": "sample", "limit": Path("x")}
    with pytest.raises(InputError, match=r"demo: data\.limit: must be a whole number"):
        recipe_from_dict(values, name="demo")


def test_a_key_with_a_line_break_stays_on_one_line() -> None:
    with pytest.raises(InputError) as raised:
        recipe_from_dict({"task": "image-text-classification", "data": {"source": "sample"}, "a\nb": 1}, name="demo")
    assert str(raised.value).startswith("demo: a\\nb: unknown key")
    assert "\n" not in str(raised.value)
