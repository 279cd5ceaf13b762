"""`mmhf.train`, `mmhf.evaluate` and `mmhf.predict` with data in memory."""

from __future__ import annotations

import mmhf  # (first: it makes torchvision importable beside a CPU build of torch)

import datasets  # isort: skip
import pandas as pd
import pytest
from transformers import TrainerCallback

from mmhf.errors import InputError


class Count(TrainerCallback):
    steps = 0

    def on_step_end(self, *args, **kwargs):
        self.steps += 1


@pytest.fixture
def run(recipe, with_images):
    return mmhf.train(recipe, train_dataset=with_images("pil")[:32], eval_dataset=with_images("bytes")[32:])


def test_a_run_has_metrics_report_model_and_release(run, tmp_path):
    assert "validation_accuracy" in run.metrics and run.report.is_file()
    assert type(run.model).__name__ == "FusionForImageTextClassification" and not run.model.training
    assert "validation_accuracy" in str(run) and "<table>" in run._repr_html_()
    assert run.release(str(tmp_path / "releases"), "0.1").endswith("v0.1")


@pytest.mark.parametrize("kind", ["DataFrame", "Dataset", "list"])
def test_predict_takes_what_train_takes(kind, run, with_images):
    rows = with_images("path")[:5]
    data = {"DataFrame": pd.DataFrame, "Dataset": datasets.Dataset.from_list, "list": list}[kind](rows)
    predicted = mmhf.predict(run, data)
    assert len(predicted) == 5 and set(predicted["label"]) <= {"bird", "frog", "house"}
    assert predicted["kind"].tolist() == [row["kind"] for row in rows] or "input_kind" in predicted


@pytest.mark.slow
def test_evaluate_takes_data_in_memory(run, with_images):
    measured = mmhf.evaluate(run, pd.DataFrame(with_images("path")[:9]))
    assert measured["test"].num_rows == 9 and 0 <= measured["test"].metrics["accuracy"] <= 1
    assert mmhf.evaluate(run.folder)["validation"].metrics["accuracy"] == run.metrics["validation_accuracy"]


@pytest.mark.slow
def test_one_table_is_cut_and_callbacks_are_called(recipe, with_images):
    count = Count()
    run = mmhf.train(
        recipe, ["training.max_steps=3"], train_dataset=pd.DataFrame(with_images("path")), callbacks=[count]
    )
    assert count.steps == 3 and {"validation_accuracy", "test_accuracy"} <= run.metrics.keys()


@pytest.mark.slow
def test_images_alone(recipe, with_images, text_encoder_dir):
    recipe |= {"task": "image-classification", "model": {"vision": recipe["model"]["vision"]}}
    recipe["data"] = {"image_size": 32, "columns": {"image": "photo", "label": "kind"}}
    run = mmhf.train(recipe, train_dataset=with_images("path"))
    images = [row["photo"] for row in with_images("pil")[:3]]
    assert len(mmhf.predict(run, images)) == 3


def test_a_column_that_is_missing_is_named(recipe, with_images):
    recipe["data"]["columns"]["label"] = "knid"
    with pytest.raises(InputError, match="did you mean kind"):
        mmhf.train(recipe, train_dataset=with_images("path"))
