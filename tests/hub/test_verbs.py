"""The verbs about releases, on a real tiny run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from loopback_hub import TOKEN, LoopbackHub
from saved_families import write_image

import mmhf
from mmhf.cli import main
from mmhf.damage import is_run_file, mark_complete
from mmhf.hub.manifest import read_release

REPO = "org/tiny"


@pytest.fixture(scope="module")
def trained_run(write_tiny_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    changes = {"training": {"output_dir": str(folder / "run")}}
    assert main(["train", str(write_tiny_recipe(folder / "tiny.yaml", changes))]) == 0
    return folder / "run"


@pytest.fixture
def copied_run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "earlier"))


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.slow
def test_release_goes_to_the_hub_or_a_folder_by_its_name(hub: LoopbackHub, copied_run: Path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["release", "earlier", "--repo", REPO, "--version", "1.8", "--best-metric", "test_accuracy"]) == 0
    assert hub.repo(REPO).tags.keys() == {"v1.8", "best"}
    (tmp_path / "mine").mkdir()
    for repo in ("releases/tiny", "mine/tiny", "./other/tiny"):
        assert main(["release", "earlier", "--repo", repo, "--version", "1.8"]) == 0
        assert read_release(tmp_path / repo / "v1.8").version == "v1.8"
    assert main(["release", "earlier", "--repo", "other/tiny", "--version", "1.9", "--no-push"]) == 0
    assert (tmp_path / "other" / "tiny" / "v1.9").is_dir()
    assert hub.store.repos.keys() == {REPO}


@pytest.mark.slow
def test_release_takes_a_card_and_refuses_nonsense_in_it(hub: LoopbackHub, copied_run: Path, tmp_path: Path, capsys):
    (tmp_path / "card.yaml").write_text("license: mit\nlimits: Drawings only.\n")
    arguments = ["release", str(copied_run), "--repo", REPO, "--version", "1.0", "--card"]
    assert main([*arguments, str(tmp_path / "card.yaml")]) == 0
    assert "license: mit" in hub.files(REPO, "main")["README.md"].decode()
    for text, message in (
        ("licence: mit\n", "release.card.licence"),
        ("license: other\n", "license_name"),
        ("- a\n", "release.card"),
        ("a: [", "not YAML"),
    ):
        (tmp_path / "card.yaml").write_text(text)
        capsys.readouterr()
        assert main([*arguments, str(tmp_path / "card.yaml")]) == 2
        assert message in _error(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repo", REPO], "--version is needed"),
        (["--version", "1.0"], "--repo is needed"),
        (["--repo", REPO, "--version", "one"], "release.version"),
        (["--repo", REPO, "--version", "1.0", "--channel", "main"], "a channel cannot be called 'main'"),
        (["--repo", "a/b/c", "--version", "1.0", "--push"], "ORG/NAME"),
        (["--repo", "./here", "--version", "1.0", "--channel", "beta"], "`channel` is for the Hub"),
    ],
)
def test_what_cannot_be_released_is_said(copied_run: Path, capsys, arguments: list[str], message: str):
    assert main(["release", str(copied_run), *arguments]) == 2
    assert message in _error(capsys)


def test_a_card_shows_the_tables_and_definitions_of_its_run(hub: LoopbackHub, copied_run: Path):
    assert main(["release", str(copied_run), "--repo", REPO, "--version", "1.0"]) == 0
    card = hub.files(REPO, "v1.0")["README.md"].decode()
    assert "## By class, test" in card and "Share of rows whose most probable class is the label." in card
    assert "training_curves.png" in hub.files(REPO, "v1.0")


@pytest.mark.slow
def test_verify_confirms_a_release_and_names_what_is_wrong(hub: LoopbackHub, copied_run: Path, capsys, caplog):
    assert main(["release", str(copied_run), "--repo", REPO, "--version", "1.0"]) == 0
    assert main(["verify", f"{REPO}@v1.0"]) == 0
    metrics = json.loads((copied_run / "metrics.json").read_text())
    metrics["test_accuracy"] += 0.25
    (copied_run / "metrics.json").write_text(json.dumps(metrics))
    assert main(["release", str(copied_run), "--repo", REPO, "--version", "1.1"]) == 2  # the run was changed
    assert "metrics.json" in _error(capsys)
    mark_complete(copied_run, is_run_file)
    assert main(["release", str(copied_run), "--repo", REPO, "--version", "1.1"]) == 0
    capsys.readouterr()
    assert main(["verify", f"{REPO}@v1.1"]) == 2
    error = _error(capsys)
    assert "1 of " in error and "test_accuracy" in error and "rows of" not in error
    assert main(["verify", f"{REPO}@v1.1", "--split", "validation"]) == 0
    capsys.readouterr()
    assert main(["verify", f"{REPO}@v1.0", "--split", "test", "data.limit=7"]) == 2
    assert "the rows of test are not those it was released with" in _error(capsys)


@pytest.mark.slow
def test_training_goes_on_from_the_hub_and_releases_to_it(hub: LoopbackHub, copied_run: Path, tiny_recipe, capsys):
    assert main(["release", str(copied_run), "--repo", REPO, "--version", "1.6"]) == 0
    release = {"repo": REPO, "version": "1.7", "push": True, "best_metric": "test_accuracy"}
    recipe = tiny_recipe({"init_from": f"{REPO}@v1.6", "release": release})
    assert main(["train", str(recipe)]) == 0
    child = json.loads(hub.files(REPO, "v1.7")["release.json"])
    assert child["parent"] == {"repo": REPO, "revision": "v1.6", "commit": hub.repo(REPO).tags["v1.6"]}
    assert child["extra"]["data_fingerprint"].keys() == {"train", "validation", "test"}
    assert not any(TOKEN.encode() in content for content in hub.files(REPO, "v1.7").values())
    capsys.readouterr()
    assert main(["train", str(recipe)]) == 2, "before it trains"
    assert "version v1.7 exists" in _error(capsys)
    assert main(["lineage", REPO]) == 0
    out = capsys.readouterr().out
    assert out.index("v1.6") < out.index("v1.7")


@pytest.mark.slow
def test_what_trainer_pushes_to_the_hub_is_served(hub: LoopbackHub, tiny_recipe: Callable[..., Path], tmp_path: Path):
    settings = {"push_to_hub": True, "hub_model_id": "writer/own", "hub_strategy": "end"}
    assert main(["train", str(tiny_recipe({"training": settings}))]) == 0
    run_dir, pushed = tmp_path / "run", hub.files("writer/own", "main")
    for name in ("model.safetensors", "metrics.json", "recipe.yaml", "tokenizer.json"):
        assert pushed[name] == (run_dir / name).read_bytes(), name
    assert {"README.md", "processor_config.json", "modeling_fusion.py", "processing_fusion.py"} <= pushed.keys()
    assert json.loads(pushed["config.json"])["auto_map"]["AutoConfig"] == "configuration_fusion.FusionConfig"
    assert "auto_map" not in json.loads((run_dir / "config.json").read_text())
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in pushed), "nothing to unpickle"
    assert not any(TOKEN.encode() in content for content in pushed.values())

    pair = {"image": str(write_image(tmp_path / "photo.jpg")), "text": "grinning face"}
    answer = transformers.pipeline("image-text-classification", model="writer/own")(pair)
    assert answer == mmhf.pipeline("image-text-classification", model=str(run_dir))(pair)
