"""`benchmarks/gpu.py` on a CPU with tiny shapes: on a rented machine each of its mistakes would cost minutes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARK.parent))
        spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARK)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def dry_run(gpu, folder, *sections):
    assert gpu.main(["--dry-run", "--json", str(folder / "gpu.json"), "--only", *sections]) == 0
    found = json.loads((folder / "gpu.json").read_text())
    assert not found["errors"]
    assert all(row["samples_per_second"] > 0 for row in found["rows"] if "samples_per_second" in row)
    return found["rows"]


@pytest.mark.slow
def test_every_section_runs(gpu, tmp_path, monkeypatch, capsys):
    """All but the compiler's, which takes a minute; where a section treats all families alike, with one of them."""
    rows = dry_run(gpu, tmp_path, "training", "caching", "data", "stored", "generation")
    monkeypatch.setattr(gpu.proof, "FAMILIES", {"fusion": gpu.proof.FAMILIES["fusion"]})
    recipes = gpu.proof.road_recipes
    monkeypatch.setattr(gpu.proof, "road_recipes", lambda bench: dict(list(recipes(bench).items())[:1]))
    rows += dry_run(gpu, tmp_path, "equality", "resume", "road")
    measured = {row["section"] for row in rows}
    assert measured == {
        *("training", "gradient caching", "data", "stored features", "CPU = GPU", "resume", "road", "generation")
    }
    resumed = [row for row in rows if row["section"] == "resume"]
    assert [row["resumed_equal"] for row in resumed] == [1]
    for row in rows:
        if row["section"] == "CPU = GPU":
            assert row["loss_difference"] == row["gradient_difference"] == 0
    assert "| training | fusion |" in capsys.readouterr().out


def test_a_section_that_fails_does_not_stop_the_others(gpu, tmp_path, monkeypatch, capsys):
    def fail(bench):
        raise ValueError("no such card")

    def dawdle(bench):
        while True:
            pass

    def work(bench):
        bench.add("works", "one", samples_per_second=2.0)

    sections = {"fails": (fail, 5), "dawdles": (dawdle, 1), "works": (work, 5)}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    monkeypatch.setattr(gpu, "TINY", dataclasses.replace(gpu.TINY, is_dry=False))  # whose sections have limits
    assert gpu.main(["--dry-run", "--json", str(tmp_path / "gpu.json")]) == 2
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["errors"].keys() == {"fails", "dawdles"}
    assert found["errors"]["fails"] == "ValueError: no such card"
    assert [row["name"] for row in found["rows"]] == ["one"]
    assert "| fails | failed |" in capsys.readouterr().out
