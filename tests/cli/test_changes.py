"""A run that is trained longer, or goes on by another recipe: what is refused and told, and what its recipe trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from mmhf.training.trainer import MMTrainer

STAGES = [
    {"name": "head", "epochs": 1, "train": ["fusion", "head"]},
    {"name": "all", "epochs": 1, "learning_rate": 1e-2, "schedule": "cosine"},
]
"""Of 4 steps each."""


@pytest.fixture
def recipe(tiny_recipe):
    saving = {"max_steps": None, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 9}
    return tiny_recipe({"training": {**saving, "eval_strategy": "no"}, "stages": STAGES})


@pytest.fixture
def stop(recipe, mmhf_cli):
    """Train until a step is done, and be interrupted."""

    def run(step: int, *arguments: Any) -> None:
        original = MMTrainer.training_step

        def training_step(self: MMTrainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == step:
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MMTrainer, "training_step", training_step)
            assert mmhf_cli("train", recipe, *arguments).code == 130

    return run


def state(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run / "trainer_state.json").read_text())
    return loaded


def history(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "changes.json").read_text())["history"]
    return found


def same_weights(one: Path, two: Path) -> bool:
    first, second = (load_file(run / "model.safetensors") for run in (one, two))
    return all(value.equal(second[name]) for name, value in first.items())


@pytest.mark.slow
def test_more_epochs_of_a_finished_run(recipe, succeed, refusal, tmp_path):
    run = tmp_path / "run"
    succeed("train", recipe)
    assert "--more EPOCHS" in refusal("train", recipe)
    succeed("train", recipe, "--more", 2)
    assert (state(run)["global_step"], state(run)["epoch"]) == (16, 4.0)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["stages"][1]["epochs"] == 3
    assert history(run)[0]["changes"] == ["stages.1.epochs: 1.0 → 3.0"]
    # The same with another recipe in place of the word.
    assert "--more EPOCHS" in refusal("train", recipe, "stages.1.epochs=3")
    succeed("train", recipe, "stages.1.epochs=4")
    assert state(run)["epoch"] == 5.0


@pytest.mark.slow
def test_more_epochs_of_an_unfinished_run(recipe, stop, succeed, tmp_path):
    stop(6)
    succeed("train", recipe, "--more", 1)
    assert (state(tmp_path / "run")["global_step"], state(tmp_path / "run")["epoch"]) == (12, 3.0)


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({}, 0, "--more 0: give a number of epochs above 0"),
        ({"stages": [{"name": "a", "steps": 4}]}, 1, "give a larger stages.0.steps instead"),
        ({"stages": None, "training": {"max_steps": 4}}, 1, "give a larger training.max_steps instead"),
    ],
)
def test_more_of_what_is_not_counted_in_epochs_names_the_way(changes, more, message, tiny_recipe, refusal):
    assert message in refusal("train", tiny_recipe({"training": {"max_steps": None}, **changes}), "--more", more)


@pytest.mark.slow
def test_a_run_without_a_checkpoint_says_that_it_cannot_be_trained_longer(recipe, succeed, refusal, tmp_path):
    succeed("train", recipe)
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert "without a checkpoint" in refusal("train", recipe, "--more", 1)


@pytest.mark.slow
def test_a_changed_run_is_told_everywhere_and_its_recipe_trains_it_again(recipe, stop, succeed, refusal, tmp_path):
    run, releases = tmp_path / "run", tmp_path / "releases"
    stop(7)
    change = "stages.1.learning_rate=0.001"
    message = refusal("train", recipe, change)
    assert "stages.1.learning_rate: 0.01 → 0.001" in message and "--allow-changes" in message
    succeed("train", recipe, change, "--allow-changes")
    succeed("train", recipe, change, "--more", 1)
    told = [
        "after step 6, stages.1.learning_rate: 0.01 → 0.001",
        "after step 8, stages.1.epochs: 1.0 → 2.0",
    ]
    assert [f"after step {entry['step']}, {line}" for entry in history(run) for line in entry["changes"]] == told

    succeed("release", run, "--repo", releases, "--version", "1.0")
    card, lineage = (releases / "v1.0" / "README.md").read_text(), succeed("lineage", releases)
    for line in told:
        assert line in card
        assert line in " ".join(lineage.replace("│", " ").split())
    released = releases / "v1.0" / "recipe.yaml"
    assert [line for line in released.read_text().splitlines() if line.startswith("#")] == [
        f"# changed on the way: {line}" for line in told
    ]

    again = tmp_path / "again"
    succeed("train", released, f"training.output_dir={again}")
    assert same_weights(run, again)
    assert history(again) == history(run)
    plain = tmp_path / "plain"
    succeed("train", released, f"training.output_dir={plain}", "history=[]")
    assert not (plain / "changes.json").exists() and not same_weights(run, plain)


@pytest.mark.slow
def test_the_recipe_of_an_unfinished_changed_run_goes_on_with_it(recipe, stop, succeed, mmhf_cli, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        stop(5, f"training.output_dir={folder}")
        stop(7, f"training.output_dir={folder}", "stages.1.learning_rate=0.001", "--allow-changes")
    succeed("train", run / "recipe.yaml")
    succeed("train", recipe, f"training.output_dir={other}", "stages.1.learning_rate=0.001")
    assert same_weights(run, other)
    assert [entry["step"] for entry in history(run)] == [4]


@pytest.mark.slow
def test_a_run_that_goes_on_from_another_ones_checkpoint_says_so(recipe, stop, succeed, tmp_path):
    first, second = tmp_path / "run", tmp_path / "second"
    stop(5)
    checkpoint = first / "checkpoint-4"
    succeed(
        "train",
        recipe,
        f"training.output_dir={second}",
        f"training.resume_from_checkpoint={checkpoint}",
        "stages.1.learning_rate=0.001",
        "--allow-changes",
    )
    succeed("release", second, "--repo", tmp_path / "releases", "--version", "1.0")
    assert f"after step 4, continued from {checkpoint}" in (tmp_path / "releases" / "v1.0" / "README.md").read_text()
    again = tmp_path / "again"
    succeed("train", second / "recipe.yaml", f"training.output_dir={again}")
    assert same_weights(second, again)
