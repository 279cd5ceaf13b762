"""What a user can get wrong: one line that says what and where, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def refused(refusal, tmp_path) -> Callable[..., str]:
    """Run a verb that must be refused without having written anything."""

    def run(*arguments: object) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        line = refusal(*arguments)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        return line

    return run


@pytest.fixture
def table(tmp_path, fakeddit_dir) -> Callable[..., dict]:
    """Changes that make a tiny recipe read a CSV with these lines."""

    def changes(*lines: str) -> dict:
        (tmp_path / "table.csv").write_text("image,text,label\n" + "".join(f"{line}\n" for line in lines))
        images = str(fakeddit_dir / "public_image_set")
        return {"data": {"source": "table", "path": str(tmp_path / "table.csv"), "image_root": images}}

    return changes


@pytest.fixture
def release(trained: Path, tmp_path: Path) -> Path:
    """A release of its own, beside the run folder that it was made from."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "releases" / "v1.6"


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_typing_error_in_a_recipe(verb, tiny_recipe, refused):
    recipe = tiny_recipe({"training": {"learnin_rate": 0.1}})
    line = refused(verb, recipe)
    assert line.startswith(f"{recipe}:") and "did you mean" in line and "learning_rate" in line


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.learnin_rate=1", "learning_rate"),
        ("model.fusion.strategy=concat", "concat_mlp"),
        ("training.learning_rate=fast", "training.learning_rate"),
        ("epochs", "epochs"),
        ("stages.0.epochs=1", "stages"),
        ("data.label=4_way_label", "2_way_label"),
        ("model.text.backbone=pypi/all-minilm", "pypi/all-minilm-l6-v2"),
        ("model.vision.backbone=timm/test_efficientnett", "timm/test_efficientnet"),
        ("init_from=nowhere", "nowhere"),
        ("data.path=nowhere", "nowhere"),
        ("early_stopping.metric=f1", "f1_macro"),
    ],
)
def test_wrong_override(override, says, tiny_recipe, refused):
    assert says in refused("train", tiny_recipe(), override)


@pytest.mark.parametrize(
    "arguments", [(), ("trian", "x.yaml"), ("train",), ("train", "x.yaml", "--resumed"), ("evaluate",)]
)
def test_wrong_words(arguments, refused):
    line = refused(*arguments)
    assert line.endswith("--help tells more") or "did you mean" in line
    if arguments and arguments[0] == "trian":
        assert "did you mean train?" in line


def test_recipe_that_is_not_there_or_a_folder(refused, tmp_path):
    assert "nothing.yaml" in refused("train", tmp_path / "nothing.yaml")
    assert str(tmp_path) in refused("train", tmp_path)
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    assert "picture.yaml" in refused("train", tmp_path / "picture.yaml")


def test_column_that_is_missing(table, tiny_recipe, refused):
    recipe = tiny_recipe(table("train0.jpg,a frog,yes"))
    line = refused("train", recipe, "data.columns.text=titel")
    assert "table.csv" in line and "titel" in line


def test_label_outside_the_map(table, tiny_recipe, refused):
    recipe = tiny_recipe(table(*(f"train{row}.jpg,frog,{'yes' if row % 2 else 'maybe'}" for row in range(30))))
    line = refused("train", recipe, "data.labels={yes: real, no: fake}")
    assert "maybe" in line and "table.csv" in line


def test_table_without_rows(table, tiny_recipe, refused):
    assert "table.csv" in refused("train", tiny_recipe(table()))


def test_split_that_is_empty(tiny_recipe, refused, fakeddit_dir, tmp_path):
    shutil.copytree(fakeddit_dir, tmp_path / "data")
    header = (tmp_path / "data" / "multimodal_train.tsv").read_text().splitlines()[0]
    (tmp_path / "data" / "multimodal_train.tsv").write_text(header + "\n")
    assert "train" in refused("train", tiny_recipe(), f"data.path={tmp_path / 'data'}")
    (tmp_path / "data" / "multimodal_train.tsv").unlink()
    assert "train" in refused("train", tiny_recipe(), f"data.path={tmp_path / 'data'}")


def test_images_that_are_all_missing(tiny_recipe, refused, fakeddit_dir, tmp_path):
    shutil.copytree(fakeddit_dir, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "public_image_set")
    (tmp_path / "data" / "public_image_set").mkdir()
    assert "train" in refused("train", tiny_recipe(), f"data.path={tmp_path / 'data'}")


def test_evaluating_what_is_not_there(release, refused, tmp_path):
    assert "did you mean" in refused("evaluate", tmp_path / "relases")
    assert "v1.6" in refused("evaluate", f"{release.parent}@v1.7")
    assert "tset" in refused("evaluate", release, "--split", "tset")
    assert "nowhere" in refused("evaluate", release, "data.path=nowhere")
    assert "nowhere.csv" in refused("predict", release, "--input", "nowhere.csv", "--output", tmp_path / "p.csv")


def test_release_that_is_damaged(release, refused, tmp_path):
    table = tmp_path / "x.csv"
    table.write_text("image,text\na.jpg,a title\n")
    verbs = [("evaluate", release), ("predict", release, "--input", table, "--output", tmp_path / "p.csv")]
    weights = release / "model.safetensors"
    weights.chmod(0o644)
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    for verb in verbs:
        assert "model.safetensors has changed" in refused(*verb)
    weights.unlink()
    for verb in verbs:
        assert "model.safetensors is missing" in refused(*verb)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "processor_config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_run_folder_that_is_damaged(name, damage, release, refused, tmp_path):
    """A run folder has no hashes, so that what loads it must say what is wrong."""
    path = tmp_path / "run" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(tmp_path / "run") in refused("evaluate", tmp_path / "run")


def test_folder_without_permission(tiny_recipe, refusal, tmp_path, monkeypatch):
    """Simulated, because a superuser may write anywhere."""
    make = Path.mkdir

    def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == "run":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert refusal("train", tiny_recipe()) == f"{tmp_path / 'run'}: Permission denied"


def test_output_dir_that_cannot_be_made(tiny_recipe, refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for output_dir in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        assert str(output_dir) in refused("train", tiny_recipe(), f"training.output_dir={output_dir}")


def test_release_into_a_folder_that_cannot_be_made(tiny_recipe, refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    recipe = tiny_recipe({"release": {"repo": str(tmp_path / "file"), "version": "1.0"}})
    assert str(tmp_path / "file") in refused("train", recipe)


@pytest.mark.parametrize("verb", ["train", "plan"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.per_device_train_batch_size=40"],
            "per_device_train_batch_size: 40 is more than the 32",
        ),
        (
            ["training.gradient_accumulation_steps=5"],
            "training.gradient_accumulation_steps: 5 × 8 is more than the 32 training",
        ),
        (["data.limit=25"], "stage train: batch norm cannot train on one row"),
        (["training.fp16=true"], "training.fp16: a CPU does not train in fp16"),
        (["training.dataloader_persistent_workers=true"], "there are no workers to keep"),
        (
            ["data.path=${NO_SUCH_VARIABLE}/x"],
            "data.path: there is no environment variable NO_SUCH_VARIABLE; got",
        ),
        (["training.output_dir=$NO_SUCH_VARIABLE/x"], "training.output_dir: there is no environment variable NO_SUCH"),
        (["data.path=${training.seed}"], "data.path: ${training.seed}: only environment variables can be put in"),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else "",
)
@pytest.mark.slow
def test_what_cannot_train_is_refused_before_it_begins(verb, overrides, message, tiny_recipe, refused):
    assert message in refused(verb, tiny_recipe(), *overrides)


@pytest.mark.slow
def test_one_row_is_no_trouble_where_batch_norm_is_held_or_rows_are_dropped(tiny_recipe, succeed):
    recipe = tiny_recipe({"data": {"limit": 25}, "training": {"max_steps": 4}})
    succeed("plan", recipe, "training.dataloader_drop_last=true")


@pytest.mark.slow
def test_no_folder_is_called_after_the_home_folder_or_a_variable(tiny_recipe, succeed, monkeypatch, tmp_path):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    succeed("train", tiny_recipe(), "training.output_dir=~/run", "cache.folder=$HOME/features")
    succeed("release", "~/run", "--repo=~/releases", "--version", "1.0")
    succeed("lineage", "$HOME/releases")
    assert (home / "run" / "metrics.json").is_file() and (home / "releases" / "v1.0").is_dir()
    assert str(home / "run") in (home / "run" / "recipe.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("~", "$"))] == []
