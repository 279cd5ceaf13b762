"""`mmhf train`: what it leaves behind, and what it trains."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmhf.models.fusion import FusionForImageTextClassification
from mmhf.models.partition import Partition

RUN_FILES = {
    "bad_examples.csv",
    "config.json",
    "metrics.json",
    "model.safetensors",
    "plots",
    "processor_config.json",
    "recipe.yaml",
    "report.html",
    "tokenizer.json",
    "trainer_state.json",
}
FREEZING = [
    {},
    {"freeze_vision": True},
    {"freeze_text": True},
    {"freeze_vision": True, "freeze_text": True},
]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_run_folder_holds_what_it_should(tiny_recipe, two_stages, succeed, tmp_path):
    two_stages["training"]["save_steps"], two_stages["training"]["save_strategy"] = 3, "steps"
    out = succeed("train", tiny_recipe(two_stages))

    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} >= RUN_FILES | {"checkpoint-3", "checkpoint-6"}
    assert list((run / "plots").glob("*.png"))
    assert not [path for path in run.rglob("*") if path.name == "training_args.bin"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"validation_accuracy", "test_accuracy", "test_loss", "test_f1_macro"} <= metrics.keys()
    assert all(isinstance(value, int | float) for value in metrics.values())
    state = json.loads((run / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert [entry["stage"] for entry in state["log_history"] if "loss" in entry] == ["head"] * 3 + ["all"] * 3
    assert "accuracy" in out and f"{metrics['test_accuracy']:.4f}" in out


@pytest.mark.slow
def test_resolved_recipe_reruns_to_the_same_weights(tiny_recipe, two_stages, succeed, tmp_path):
    succeed("train", tiny_recipe(two_stages), "model.fusion.dropout=0.3", "data.augment={horizontal_flip: 0.5}")
    written = tmp_path / "run" / "recipe.yaml"
    assert yaml.safe_load(written.read_text())["model"]["fusion"]["dropout"] == 0.3

    succeed("train", written, f"training.output_dir={tmp_path / 'again'}")

    assert sha256(tmp_path / "run" / "model.safetensors") == sha256(tmp_path / "again" / "model.safetensors")
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (tmp_path / "again" / "metrics.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("freezing", FREEZING, ids=lambda freezing: "+".join(freezing) or "nothing frozen")
def test_freeze_shorthands_train_exactly_the_rest(freezing, tiny_recipe, succeed, tmp_path):
    """Compared with a run that trains at rate 0, which ends where it began, batch-norm statistics aside."""
    succeed("train", tiny_recipe({"model": freezing, "training": {"max_steps": 1}}))
    start = tiny_recipe({"training": {"max_steps": 1, "learning_rate": 0.0, "output_dir": str(tmp_path / "start")}})
    succeed("train", start)

    before = load_file(tmp_path / "start" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    partition = Partition.of(FusionForImageTextClassification.from_pretrained(tmp_path / "run"))
    frozen = tuple(name.removeprefix("freeze_") for name in freezing)
    for group, names in partition.items():
        moved = any(not torch.equal(before[name], after[name]) for name in names)
        assert moved != group.startswith(frozen or ("nothing",)), group
    if "vision" in frozen:
        fresh = {name: value for name, value in after.items() if name.endswith("running_mean")}
        assert fresh and all(not value.any() for value in fresh.values())


@pytest.mark.slow
def test_any_checkpoint_of_a_run_can_be_gone_on_from_in_another_folder(
    tiny_recipe, two_stages, succeed, refusal, tmp_path
):
    two_stages["training"] |= {"save_steps": 2, "save_strategy": "steps", "save_total_limit": 5}
    recipe = tiny_recipe(two_stages)
    succeed("train", recipe)
    checkpoint, again = tmp_path / "run" / "checkpoint-2", f"training.output_dir={tmp_path / 'again'}"
    assert "no whole checkpoint" in refusal("train", recipe, again, f"training.resume_from_checkpoint={tmp_path}")
    from_it = f"training.resume_from_checkpoint={checkpoint}"
    assert "lies in training.output_dir" in refusal("train", recipe, from_it)
    assert "learning_rate: " in refusal("train", recipe, again, from_it, "stages.1.learning_rate=0.5")
    assert "carry_best" in refusal("train", recipe, again, from_it, "stages.0.carry_best=accuracy")
    assert not (tmp_path / "again").exists()

    succeed("train", recipe, again, from_it)

    assert not (tmp_path / "again" / "checkpoint-2").exists()
    assert sha256(tmp_path / "run" / "model.safetensors") == sha256(tmp_path / "again" / "model.safetensors")
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (tmp_path / "again" / "metrics.json").read_bytes()


@pytest.mark.slow
def test_runs_without_output_dir_go_to_outputs(tiny_recipe, succeed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    succeed("train", tiny_recipe(name="mine"), "training.output_dir=null")
    (run,) = (tmp_path / "outputs" / "mine").iterdir()
    assert (run / "metrics.json").is_file()


@pytest.mark.slow
def test_finished_run_is_refused(tiny_recipe, succeed, refusal, tmp_path):
    recipe = tiny_recipe()
    succeed("train", recipe)
    weights = sha256(tmp_path / "run" / "model.safetensors")
    assert "holds a finished run" in refusal("train", recipe)
    assert sha256(tmp_path / "run" / "model.safetensors") == weights


@pytest.mark.slow
def test_changed_recipe_is_refused_with_the_difference(tiny_recipe, succeed, refusal, tmp_path, caplog):
    recipe = tiny_recipe()
    succeed("train", recipe)
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had been stopped before its evaluation

    line = refusal("train", recipe, "training.learning_rate=0.02")
    assert "training.learning_rate: 0.01 → 0.02" in line and "--allow-changes" in line

    succeed("train", recipe, "training.learning_rate=0.02", "--allow-changes")
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["training"]["learning_rate"] == 0.02
    assert "training.learning_rate: 0.01 → 0.02" in caplog.text


@pytest.mark.slow
def test_run_stopped_before_its_first_checkpoint_may_begin_again_with_another_recipe(tiny_recipe, succeed, tmp_path):
    recipe = tiny_recipe()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.read_text().replace("0.01", "0.5"))
    succeed("train", recipe)


@pytest.mark.slow
def test_release_that_a_stopped_run_missed_is_made(tiny_recipe, succeed, refusal, tmp_path):
    recipe = tiny_recipe({"release": {"repo": str(tmp_path / "releases"), "version": "0.1"}})
    succeed("train", recipe)
    weights = (tmp_path / "releases" / "v0.1" / "model.safetensors").read_bytes()
    (tmp_path / "releases" / "v0.1").rename(tmp_path / "elsewhere")

    succeed("train", recipe)

    assert (tmp_path / "releases" / "v0.1" / "model.safetensors").read_bytes() == weights
    assert "version v0.1 exists" in refusal("train", recipe)


def test_folder_that_holds_something_else_is_refused(tiny_recipe, refusal, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("months of work")
    assert "holds files but no run" in refusal("train", tiny_recipe())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_resume_finds_the_unfinished_run(tiny_recipe, succeed, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe({"training": {"output_dir": None}})
    assert "no unfinished run" in refusal("train", recipe, "--resume")
    succeed("train", recipe)
    (run,) = (tmp_path / "outputs" / "tiny").iterdir()
    (run / "metrics.json").unlink()

    succeed("train", recipe, "--resume")

    assert list((tmp_path / "outputs" / "tiny").iterdir()) == [run]
    assert (run / "metrics.json").is_file()
