import csv

import pytest
import yaml
from optuna.trial import TrialState
from PIL import Image

from mmhf.recipe import load_recipe
from mmhf.sweep import SharedStudy, load_space
from mmhf.sweep.outcome import write_outcome

RECIPE = "recipes/quickstart/image_classifier.yaml"


@pytest.fixture
def make_study(tmp_path):
    def make(direction="maximize"):
        path = tmp_path / "space.yaml"
        path.write_text(
            f"metric: loss\ndirection: {direction}\nsampler: random\nspace:\n"
            "  training.weight_decay: {low: 1e-5, high: 1e-1, log: true}\n  model.vision.pooling: [avg, max]\n"
        )
        return SharedStudy(str(tmp_path / direction), "sweep", space=load_space(path), recipe="x")

    return make


def run(study, *values):
    for value in values:
        trial = study.next_trial(99)
        if value is None:
            trial.study.tell(trial, state=TrialState.FAIL)
        else:
            trial.report(value, 1)
            trial.study.tell(trial, value)


@pytest.mark.parametrize(("direction", "best"), [("maximize", 2), ("minimize", 0)])
def test_the_best_recipe_is_the_recipe_with_the_best_values(make_study, tmp_path, direction, best):
    study = make_study(direction)
    run(study, 0.1, None, 0.9, 0.5)
    assert write_outcome(study, tmp_path, RECIPE, ["data.limit=7"]).number == best
    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith(f"# Trial {best} of sweep sweep: validation loss")
    recipe, params = load_recipe(tmp_path / "best.yaml").recipe, study.trials()[best].params
    assert recipe.training["weight_decay"] == params["training.weight_decay"]
    assert recipe.model.vision.pooling == params["model.vision.pooling"]
    assert recipe.data.limit == 7 and recipe.release is not None
    assert yaml.safe_load(text)["training"]["output_dir"] == "outputs/quickstart_image_classifier"


def test_the_table_has_a_row_a_trial(make_study, tmp_path):
    study = make_study()
    run(study, 0.1, None)
    write_outcome(study, tmp_path, RECIPE, [])
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [(row["trial"], row["state"], row["loss"], row["epochs"]) for row in rows] == [
        ("0", "complete", "0.1", "1"),
        ("1", "fail", "", ""),
    ]
    assert float(rows[0]["training.weight_decay"]) == study.trials()[0].params["training.weight_decay"]


def test_plots_show_history_importance_and_parallel_coordinates(make_study, tmp_path):
    study = make_study()
    run(study, 0.1, 0.9, 0.5, 0.3, 0.2)
    write_outcome(study, tmp_path, RECIPE, [])
    pictures = {path.name: Image.open(path).size for path in (tmp_path / "plots").iterdir()}
    assert pictures.keys() == {"history.png", "importance.png", "parallel_coordinate.png"}
    assert all(min(size) > 200 for size in pictures.values())


def test_a_sweep_without_success_has_only_the_table(make_study, tmp_path):
    study = make_study()
    run(study, None)
    assert write_outcome(study, tmp_path / "sweep", RECIPE, []) is None
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["trials.csv"]
