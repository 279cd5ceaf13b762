"""`mmhf sweep`, with real trainings where a test is slow."""

import csv
import json
import os
import signal

import pytest
from programs import Program

from mmhf.recipe import load_recipe


@pytest.fixture
def space(tmp_path):
    def write(text):
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metric: acuracy\nspace: {training.seed: [1]}", "metric: 'acuracy' is not measured.*accuracy"),
        ("metric: accuracy\nspace: {model.fusion.dropot: [0.1]}", "space.model.fusion.dropot: .*dropout"),
        ("metric: accuracy\nspace: {model.fusion.dropout: {low: 0.1, high: 3.0}}", "space.model.fusion.dropout: .*3"),
        ("metric: accuracy\nspace: {training.output_dir: [a, b]}", "a folder of its own"),
    ],
)
def test_a_space_that_does_not_fit_the_recipe_is_refused_before_any_training(
    tiny_recipe, space, refusal, text, message, tmp_path
):
    import re

    line = refusal("sweep", tiny_recipe(), space(text), "--output", tmp_path / "sweep")
    assert re.search(message, line), line
    assert "space.yaml" in line and not (tmp_path / "sweep").exists()


def test_a_sweep_needs_the_validation_split(tiny_recipe, space, refusal):
    path = space("metric: accuracy\nspace: {training.seed: [1]}")
    assert "validation split" in refusal("sweep", tiny_recipe({"evaluation": {"splits": ["test"]}}), path)


@pytest.mark.slow
def test_two_processes_finish_a_sweep_although_one_is_killed(tiny_recipe, space, tmp_path):
    """Four points on one journal file; a worker is killed in its first training, with what it trains."""
    recipe = tiny_recipe({"training": {"max_steps": None, "num_train_epochs": 2}, "data": {"limit": 24}})
    path = space(
        "metric: loss\nsampler: grid\nspace:\n"
        "  training.learning_rate: [1e-2, 1e-3]\n  model.fusion.dropout: [0.0, 0.5]\n"
    )
    folder = tmp_path / "sweep"
    workers = [Program("sweep", recipe, path, "--output", folder) for _ in range(2)]
    workers[0].wait_until(lambda: any(folder.glob("trials/*.log")))
    log = next(folder.glob("trials/*.log"))
    victim = next(worker for worker in workers if worker_of(folder, int(log.stem)) == worker.pid)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    (survivor,) = [worker for worker in workers if worker is not victim]
    assert survivor.wait() == 0, survivor.output

    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["complete"] * 4
    points = [(float(row["training.learning_rate"]), float(row["model.fusion.dropout"])) for row in rows]
    assert points == [(1e-2, 0.0), (1e-2, 0.5), (1e-3, 0.0), (1e-3, 0.5)]
    runs = [json.loads((folder / "trials" / f"{number:04d}" / "metrics.json").read_text()) for number in range(4)]
    assert [float(row["loss"]) for row in rows] == [run["validation_loss"] for run in runs]
    best = load_recipe(folder / "best.yaml").recipe
    expected = min(zip(runs, points, strict=True), key=lambda pair: pair[0]["validation_loss"])[1]
    assert (best.training["learning_rate"], best.model.fusion.dropout) == expected
    assert {plot.name for plot in (folder / "plots").iterdir()} >= {"history.png", "parallel_coordinate.png"}


def worker_of(folder, number):
    """The process that the journal names for a trial."""
    created = [json.loads(line) for line in (folder / "journal.log").read_text().splitlines()]
    created = [entry["user_attrs"]["worker"] for entry in created if "datetime_start" in entry and "study_id" in entry]
    return int(created[number].split(":")[1])
