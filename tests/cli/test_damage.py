"""What happens to files of finished and unfinished work is told by name, and remade where it can be."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

import mmhf
from mmhf.inference import JobSettings
from mmhf.inference.table_job import TableJob


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


@pytest.fixture
def table(fakeddit_dir: Path) -> Path:
    return fakeddit_dir / "multimodal_test_public.tsv"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "recipe.yaml", "tokenizer.json"])
def test_every_verb_refuses_a_run_with_a_flipped_byte(name, run, table, tiny_recipe, refusal, tmp_path):
    flip(run / name)
    output = tmp_path / "out.csv"
    for arguments in (
        ["predict", run, "--input", table, "--output", output],
        ["evaluate", run],
        ["release", run, "--repo", tmp_path / "releases", "--version", "1.0"],
        ["train", tiny_recipe({"init_from": str(run)}, name="child")],
        ["demo", run],
    ):
        assert f"{run}: {name} is damaged; restore it" in refusal(*arguments)
    assert not output.exists() and not (tmp_path / "releases" / "v1.0").exists()
    with pytest.raises(mmhf.errors.DamagedError, match=f"{name} is damaged"):
        mmhf.pipeline("image-text-classification", model=str(run))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "lineage.json"])
def test_a_file_that_is_gone_is_named(name, run, refusal, tmp_path):
    (run / name).unlink()
    message = refusal("release", run, "--repo", tmp_path / "releases", "--version", "1.0")
    assert name in message


def test_a_run_without_its_marker_is_used_with_a_word(run, succeed, caplog):
    (run / "complete").unlink()
    with caplog.at_level(logging.WARNING):
        succeed("evaluate", run, "--split", "test")
    assert f"{run / 'complete'}: is missing" in caplog.text


@pytest.mark.slow
def test_a_run_can_be_evaluated_into_its_own_folder(run, succeed):
    succeed("evaluate", run, "--output", run)
    succeed("evaluate", run)


def test_a_release_without_its_manifest_is_no_run_and_no_reason_to_take_an_older_one(trained, run, refusal, tmp_path):
    releases = Path(shutil.copytree(trained / "releases", tmp_path / "releases"))
    shutil.copytree(releases / "v1.6", releases / "v1.5")
    (releases / "v1.6" / "release.json").unlink()
    for name in (releases, f"{releases}@1.6", releases / "v1.6"):
        assert "v1.6: damaged release, release.json is missing" in refusal("evaluate", name)


@pytest.mark.parametrize(
    "damage", [Path.unlink, flip, lambda path: path.write_text("a: [")], ids=["gone", "flip", "cut"]
)
@pytest.mark.slow
def test_a_damaged_recipe_of_an_unfinished_run_is_named(damage, tiny_recipe, mmhf_cli, monkeypatch, tmp_path):
    recipe = tiny_recipe({"training": {"save_strategy": "steps", "save_steps": 1}})
    monkeypatch.setattr("mmhf.verbs.train.finish", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    assert mmhf_cli("train", recipe).code == 130
    damage(tmp_path / "run" / "recipe.yaml")
    outcome = mmhf_cli("train", recipe)
    assert outcome.code == 2 and str(tmp_path / "run") in outcome.err and "Traceback" not in outcome.err


class _StopError(Exception):
    pass


@pytest.fixture
def stopped(run: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Begins a prediction of three shards and stops it when these are done; gives the output."""

    def begin() -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(TableJob, "_assemble", lambda self: (_ for _ in ()).throw(_StopError))
            with pytest.raises(_StopError):
                predict(run, table, tmp_path / "out.csv")
        assert len(list((tmp_path / "out.csv.partial").glob("shard-*"))) == 3
        return tmp_path / "out.csv"

    return begin


def predict(run: Path, table: Path, output: Path) -> str:
    settings = JobSettings(shard_rows=4, progress=False)
    mmhf.inference.predict_table(run, table, output, settings)
    return output.read_text() if output.suffix == ".csv" else pq.read_table(output).to_pandas().to_csv()


def test_damaged_partial_results_are_made_again(stopped, run, table, caplog, tmp_path):
    wanted = predict(run, table, tmp_path / "whole.csv")
    output = stopped()
    first, second, third = sorted(Path(f"{output}.partial").glob("shard-*"))
    flip(first)
    flip(third, at=0.99)
    first_content, second_content = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_content)  # a whole shard, but another one's
    with caplog.at_level(logging.WARNING):
        assert predict(run, table, output) == wanted
    assert f"{first}: is damaged; its rows are done again" in caplog.text and str(third) in caplog.text
    assert str(second) not in caplog.text and first_content != second_content


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
@pytest.mark.slow
def test_partial_results_of_unknown_origin_are_not_used(content, stopped, run, table):
    output = stopped()
    identity = Path(f"{output}.partial") / "identity.json"
    identity.unlink() if content is None else identity.write_text(content)
    with pytest.raises(mmhf.errors.DamagedError, match=r"identity\.json: is missing or damaged"):
        predict(run, table, output)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_damaged_output_is_not_taken_for_finished(suffix, run, table, tmp_path):
    output = tmp_path / f"out{suffix}"
    predict(run, table, output)
    for path in (output, Path(f"{output}.job.json")):
        content = path.read_bytes()
        flip(path)
        with pytest.raises(mmhf.errors.InputError, match="exists already; choose another name"):
            predict(run, table, output)
        path.write_bytes(content)
    predict(run, table, output)  # as it was again: nothing to do


def test_what_was_made_is_a_table_for_pandas(run, table, tmp_path):
    predict(run, table, tmp_path / "out.parquet")
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == len(pd.read_csv(table, sep="\t"))
    assert json.loads((tmp_path / "out.parquet.job.json").read_text())["identity"]["batch size"] == "32"
