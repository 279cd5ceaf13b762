"""`mmhf soup`: from runs to a folder that is evaluated, released and remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mmhf
from mmhf.cli import main
from mmhf.hub.manifest import read_release


@pytest.fixture(scope="module")
def runs(write_tiny_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("soups")
    found = []
    for number in range(2):
        training = {"output_dir": str(folder / f"run{number}"), "learning_rate": 1e-3 * (1 + number)}
        found.append(str(mmhf.train(write_tiny_recipe(folder / f"{number}.yaml", {"training": training})).folder))
    return found


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


@pytest.mark.slow
def test_an_average_is_evaluated_and_released_with_all_its_parents(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "soup"
    assert main(["soup", *runs, "-o", str(output), "--alpha", "0.25"]) == 0
    first, second, found = weights(runs[0]), weights(runs[1]), weights(output)
    moved = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    assert moved
    for name in moved:
        torch.testing.assert_close(found[name], torch.lerp(first[name], second[name], 0.25), rtol=1e-5, atol=1e-7)
    assert main(["evaluate", str(output), "--output", str(output)]) == 0
    numbers = json.loads((output / "metrics.json").read_text())
    assert "test_accuracy" in numbers and (output / "report.html").is_file()
    assert main(["release", str(output), "--repo", str(tmp_path / "releases"), "--version", "1.0", "--no-push"]) == 0
    release = read_release(tmp_path / "releases" / "v1.0")
    assert [(each["repo"], each["weight"]) for each in release.extra["soup"]] == [(runs[0], 0.75), (runs[1], 0.25)]
    assert "an average of" in (tmp_path / "releases" / "v1.0" / "README.md").read_text()
    capsys.readouterr()
    assert main(["lineage", str(tmp_path / "releases")]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert all(f"{Path(run).name}({share})" in shown for run, share in zip(runs, ("0.75", "0.25"), strict=True))


@pytest.mark.slow
def test_checkpoints_have_the_recipe_of_their_run(runs: list[str], tmp_path: Path) -> None:
    last = [str(max(Path(run).glob("checkpoint-*"), key=lambda each: int(each.name.split("-")[1]))) for run in runs]
    measured = mmhf.evaluate(last[0], splits=["test"])["test"].metrics
    expected = json.loads((Path(runs[0]) / "metrics.json").read_text())
    assert measured["accuracy"] == expected["test_accuracy"] and measured["loss"] == pytest.approx(
        expected["test_loss"], rel=1e-5
    )
    assert main(["soup", *last, "-o", str(tmp_path / "soup")]) == 0
    assert (tmp_path / "soup" / "recipe.yaml").is_file()


@pytest.mark.slow
def test_greedy_keeps_what_does_not_get_worse_and_begins_with_the_best(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmhf.verbs import soup as module

    scores = iter([0.5, 0.7, 0.6, 0.65, 0.8])  # of each alone, then of the best with the third and with the first
    asked: list[list[str]] = []

    class Measured:
        def __init__(self) -> None:
            self.metrics = {"accuracy": next(scores)}

    def evaluate(folder: str, *, overrides: object, splits: list[str]) -> dict[str, Measured]:
        assert splits == ["validation"]
        asked.append([each["repo"] for each in json.loads((Path(folder) / "lineage.json").read_text())["soup"]])
        return {"validation": Measured()}

    monkeypatch.setattr(module, "evaluate", evaluate)
    third = tmp_path / "third"
    module.soup(runs, third)
    three = [*runs, str(third)]
    module.soup(three, tmp_path / "best", greedy=True, metric="accuracy")
    assert asked == [[runs[0]], [runs[1]], [three[2]], [runs[1], three[2]], [runs[1], runs[0]]]
    kept = json.loads((tmp_path / "best" / "lineage.json").read_text())["soup"]
    assert [(each["repo"], each["weight"]) for each in kept] == [(runs[1], 0.5), (runs[0], 0.5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "1"], "one number for each of the 2 models"),
        (["--weights", "1", "-1"], "none below 0"),
        (["--weights", "0", "0"], "not all 0"),
        (["--weights", "1", "1", "--alpha", "0.5"], "--weights and --alpha"),
        (["--alpha", "1.5"], "from 0 to 1"),
        (["--metric", "accuracy"], "only --greedy"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["soup", *runs, "-o", str(tmp_path / "soup"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_nothing_is_written_where_a_model_does_not_fit(
    runs: list[str], tmp_path: Path, write_tiny_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"training": {"output_dir": str(tmp_path / "wider")}, "model": {"embedding_dim": 24}}
    wider = str(mmhf.train(write_tiny_recipe(tmp_path / "wider.yaml", changes)).folder)
    capsys.readouterr()
    assert main(["soup", runs[0], wider, "-o", str(tmp_path / "soup")]) == 2
    error = capsys.readouterr().err
    assert f"error: {wider}: its embedding_dim is 24" in error and not (tmp_path / "soup").exists()
