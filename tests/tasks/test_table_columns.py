"""Columns of a table in whole runs: what the training rows say, what is refused, and that all roads agree."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.preprocessing import OneHotEncoder, RobustScaler

import mmhf
from mmhf import pipeline
from mmhf.cli import main
from mmhf.data.loading import LoadedData, load_data
from mmhf.data.table import extra_column
from mmhf.errors import InputError
from mmhf.inference import JobSettings, predict_table
from mmhf.models.fusion import FusionProcessor
from mmhf.recipe import load_recipe
from mmhf.recipe.fusion_recipe import TableColumnsSection
from mmhf.sample_data import read_sample
from mmhf.tasks import task_of
from mmhf.tasks.table_columns import column_matrix, fit_columns, name_unmet

NUM_ROWS = 96
SECTION = {"numbers": ["age"], "categories": ["sex", "site"], "hidden_dims": [8]}


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings with ages and sites, of which some are missing, and a site that the test split alone has."""
    folder = tmp_path_factory.mktemp("columns")
    generator = np.random.default_rng(0)
    rows = []
    for index, drawing in enumerate(read_sample("train").slice(0, NUM_ROWS).to_pylist()):
        (folder / f"{index}.png").write_bytes(drawing["image"]["bytes"])
        split = ("train", "train", "validation", "test")[index // 12 % 4]
        age = "" if index % 7 == 0 else round(float(generator.gamma(4, 12)), 1)
        site = "scalp" if split == "test" and index % 5 == 0 else ("back", "face", "")[index % 3]
        label = ("rare", "usual")[int(site == "back" or index % 4 > 0)]
        rows.append(
            [f"{index}.png", drawing["caption"], label, age, ("female", "male")[index % 2], site, index, split]
        )
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(
            [["image", "text", "label", "age", "sex", "site", "patient", "split"], *rows],
        )
    return folder


@pytest.fixture(scope="module")
def write_recipe(clinic: Path, write_tiny_recipe: Callable[..., Path]) -> Callable[..., Path]:
    def write(run_dir: Path, **changes: Any) -> Path:
        changes["data"] = {
            "source": "table",
            "path": str(clinic / "table.csv"),
            "split_column": "split",
            **changes.get("data", {}),
        }
        changes["model"] = {"columns": SECTION, **changes.get("model", {})}
        training = {"output_dir": str(run_dir), "per_device_eval_batch_size": 16, **changes.get("training", {})}
        return write_tiny_recipe(run_dir.with_suffix(".yaml"), {**changes, "training": training})

    return write


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> LoadedData:
    recipe = load_recipe(write_recipe(tmp_path_factory.mktemp("loaded") / "run")).recipe
    return load_data(recipe.data, extra_columns=["age", "sex", "site", "patient"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    stages = [
        {
            "name": "columns",
            "steps": 4,
            "train": ["columns", "head"],
            "learning_rate": {"columns": 0.05, "head": 1e-3},
        },
        {"name": "all", "steps": 2, "train": "all"},
    ]
    model = {"modalities": {"stand_in": "learnt", "dropout": {"columns": 0.3, "text": 0.1}}}
    recipe = write_recipe(run_dir, model=model, stages=stages, training={"max_steps": None})
    assert main(["train", str(recipe)]) == 0
    return run_dir


def fit(loaded: LoadedData, **section: Any):
    return fit_columns(TableColumnsSection.model_validate(section), loaded)


def test_numbers_and_categories_are_those_of_scikit_learn(loaded, clinic):
    features = fit(loaded, numbers=["age"], categories=["sex", "site"])
    table = pd.read_csv(clinic / "table.csv")
    splits = {split: table[table["split"] == split] for split in ("train", "test")}
    scaler = RobustScaler().fit(splits["train"][["age"]].to_numpy())
    coder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(splits["train"][["sex"]].to_numpy())
    for split, rows in splits.items():
        made = column_matrix(features, loaded.splits[split])
        ages = scaler.transform(rows[["age"]].to_numpy())[:, 0]
        np.testing.assert_allclose(made[:, 0], np.nan_to_num(ages), rtol=1e-6, atol=1e-7)
        assert made[:, 1].tolist() == np.isnan(ages).tolist()
        np.testing.assert_array_equal(made[:, 2:4], coder.transform(rows[["sex"]].to_numpy()))
        sites = rows["site"].to_numpy()
        assert made[:, 4:].tolist() == [[each == "back", each == "face", each != each] for each in sites.tolist()]


def training_rows(**columns: list[str | None]) -> LoadedData:
    count = len(next(iter(columns.values())))
    named = {extra_column(name): values for name, values in columns.items()}
    table = {"row": list(range(count)), "id": [str(number) for number in range(count)], **named}
    return LoadedData({"train": datasets.Dataset.from_dict(table)}, [])


def test_a_number_that_most_rows_agree_in_is_not_divided_by_nothing():
    data = training_rows(n=["1"] * 9 + ["5"])
    expected = RobustScaler().fit_transform(np.array([[1.0]] * 9 + [[5.0]]))
    np.testing.assert_allclose(column_matrix(fit(data, numbers=["n"]), data.splits["train"]), expected)


def test_rare_categories_are_unknown_ones():
    data = training_rows(c=["a"] * 5 + ["b"] * 3 + ["c", None])
    assert fit(data, categories=["c"]).describe() == {"c": ["a", "b", "c"]}
    features = fit(data, categories=["c"], min_rows=2)
    assert features.describe() == {"c": ["a", "b"]}
    assert column_matrix(features, data.splits["train"])[-3:].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    with pytest.raises(InputError, match="no value has 9 training rows"):
        fit(data, categories=["c"], min_rows=9)


def test_columns_that_say_nothing_are_refused_unless_it_tells_who_lacks_them():
    with pytest.raises(InputError, match="numbers: n: is 2.0 in every training row"):
        fit(training_rows(n=["2"] * 4), numbers=["n"])
    with pytest.raises(InputError, match="numbers: n: no training row has a value"):
        fit(training_rows(n=[None] * 4), numbers=["n"])
    data = training_rows(n=["2", None, "2"])
    assert column_matrix(fit(data, numbers=["n"]), data.splits["train"]).tolist() == [[0, 0], [0, 1], [0, 0]]


def test_what_only_other_splits_have_is_counted_and_named(loaded, caplog):
    features = fit(loaded, numbers=["age"], categories=["sex", "site"])
    listed = name_unmet(features, loaded, splits=["validation", "test"])
    assert {each.split for each in listed} == {"test"}
    assert {each.reason for each in listed} == {"site: 'scalp' is unknown to the model"}
    assert f"'scalp' is unknown to the model ({len(listed)} rows)" in caplog.text
    assert name_unmet(features, loaded, splits=["train"]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numbers": ["sex"]}, "model.columns.numbers: sex: 48 of 48 rows of train have no number, as 'female'"),
        ({"numbers": ["agee"]}, "no column 'agee'.*did you mean.*age"),
        ({"categories": ["patient"]}, "categories: patient: has 48 values in 48 training rows"),
        ({"categories": ["split"]}, "categories: split: is train in every training row"),
    ],
)
def test_what_is_wrong_with_columns_is_said_before_a_model_is_built(changes, message, write_recipe, tmp_path):
    recipe = load_recipe(write_recipe(tmp_path / "run", model={"columns": changes})).recipe
    with pytest.raises(InputError, match=message):
        task_of(recipe).load_data()


def test_plan_and_train_end_with_code_2_and_one_line(write_recipe, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "run", model={"columns": {"numbers": ["sex"]}})
    for verb in ("plan", "train"):
        assert main([verb, str(recipe)]) == 2
        assert "sex: 48 of 48 rows of train have no number" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_texts_among_numbers_are_placeholders_if_the_recipe_says_so(clinic, write_recipe, tmp_path):
    table = pd.read_csv(clinic / "table.csv", dtype=str)
    table.loc[20, "age"] = "not known"
    table.to_csv(clinic / "other.csv", index=False)
    paths = {"path": str(clinic / "other.csv")}
    with pytest.raises(InputError, match=r"age: 1 of 48 rows of train have no number, as 'not known' \(row 21"):
        task_of(load_recipe(write_recipe(tmp_path / "run", data=paths)).recipe).load_data()
    recipe = load_recipe(write_recipe(tmp_path / "run", data={**paths, "missing": ["not *"]})).recipe
    assert task_of(recipe).load_data().splits["train"]["extra.age"][20] is None


@pytest.mark.slow
def test_a_run_trains_columns_by_their_own_stage_and_says_what_each_modality_does(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    for name in ("image_only", "text_only", "columns_only", "without_columns", "mismatched_image"):
        assert 0 <= metrics[f"test_{name}_accuracy"] <= 1
    report = (trained / "report.html").read_text(encoding="utf-8")
    for said in ("columns alone", "image, text and columns", "logistic regression on columns"):
        assert said in report, said
    bad = list(csv.DictReader((trained / "bad_examples.csv").open(encoding="utf-8")))
    assert {row["reason"] for row in bad} == {"site: 'scalp' is unknown to the model"}
    weights = load_file(trained / "model.safetensors")
    assert weights["fusion.stand_ins"].shape == (3, 16) and weights["fusion.stand_ins"][2].abs().sum() > 0
    processor = FusionProcessor.from_pretrained(trained)
    assert processor.columns == json.loads((trained / "config.json").read_text())["columns"]


@pytest.mark.slow
def test_evaluate_predict_and_pipeline_agree(trained, clinic, tmp_path, capsys):
    table = pd.read_csv(clinic / "table.csv")
    test = table[table["split"] == "test"].rename(columns={"age": "years"})
    test.to_csv(clinic / "test.csv", index=False)
    settings = JobSettings(device="cpu", columns={"age": "years"})
    predict_table(trained, clinic / "test.csv", tmp_path / "out.parquet", settings)
    predicted = pd.read_parquet(tmp_path / "out.parquet")
    metrics = json.loads((trained / "metrics.json").read_text())
    assert (predicted["label"].to_numpy() == test["label"].to_numpy()).mean() == pytest.approx(
        metrics["test_accuracy"]
    )
    assert main(["evaluate", str(trained), "--split", "test", "--output", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    for name in ("test_loss", "test_columns_only_accuracy"):
        assert again[name] == pytest.approx(metrics[name], abs=1e-5)
    classify = pipeline("image-text-classification", model=trained)
    for row, expected in zip(test.to_dict("records"), predicted.to_dict("records"), strict=True):
        values = {"age": row["years"], "sex": row["sex"], "site": row["site"]}
        given = {"image": str(clinic / row["image"]), "text": row["text"], "columns": values}
        answer = {each["label"]: each["score"] for each in classify(given)}
        assert answer["usual"] == pytest.approx(expected["probability_usual"], abs=1e-6)
        unknown = "site: 'scalp' is unknown to the model" if row["site"] == "scalp" else None
        assert (None if pd.isna(expected["error"]) else expected["error"]) == unknown


@pytest.mark.slow
def test_a_run_goes_on_from_a_release_with_its_own_columns(trained, write_recipe, tmp_path, capsys):
    model = {"modalities": {"stand_in": "learnt", "dropout": {"columns": 0.3}}}
    recipe = write_recipe(tmp_path / "run", init_from=str(trained), model=model)
    assert main(["train", str(recipe)]) == 0
    child, parent = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "run", trained))
    assert child["columns"] == parent["columns"]
    for columns, message in ((None, "write {numbers"), ({"numbers": ["age"]}, "reads age, sex, site")):
        changes = {"modalities": {"stand_in": "learnt"}, "columns": columns}
        other = write_recipe(tmp_path / "other", init_from=str(trained), model=changes)
        assert main(["train", str(other)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_stored_features_and_columns_give_the_same_losses(write_recipe, tmp_path):
    losses = []
    for mode in ("off", "on"):
        run_dir = tmp_path / mode
        stages = [{"name": "head", "steps": 6, "train": ["columns", "fusion", "head"]}]
        recipe = write_recipe(run_dir, stages=stages, cache={"mode": mode}, training={"max_steps": None})
        assert main(["train", str(recipe)]) == 0
        history = json.loads((run_dir / "trainer_state.json").read_text())["log_history"]
        losses.append([entry["loss"] for entry in history if "loss" in entry])
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.slow
def test_a_model_of_images_and_columns_needs_no_texts(write_recipe, clinic, tmp_path):
    model = {"modalities": {"mask": "text"}}
    recipe = write_recipe(tmp_path / "run", model=model)
    assert main(["train", str(recipe)]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "test_columns_only_accuracy" in metrics and "test_text_only_accuracy" not in metrics
    table = pd.read_csv(clinic / "table.csv").drop(columns=["text", "label"])
    table.to_csv(clinic / "untold.csv", index=False)
    predict_table(tmp_path / "run", clinic / "untold.csv", tmp_path / "out.csv", JobSettings(device="cpu"))
    predicted = pd.read_csv(tmp_path / "out.csv")
    assert predicted["label"].notna().all() and set(predicted["error"].dropna()) == {
        "site: 'scalp' is unknown to the model"
    }
    classify = pipeline("image-text-classification", model=tmp_path / "run")
    with torch.no_grad():
        answer = classify({"image": str(clinic / "0.png"), "columns": {"sex": "male"}}, top_k=1)
    assert len(answer) == 1


def test_the_fingerprint_depends_on_columns_that_the_model_reads(write_recipe, clinic, tmp_path):
    found = []
    for name, columns in (("table.csv", SECTION), ("table.csv", None), ("older.csv", SECTION), ("older.csv", None)):
        table = pd.read_csv(clinic / "table.csv")
        table.loc[0:5, "age"] = 99
        table.to_csv(clinic / "older.csv", index=False)
        recipe = load_recipe(
            write_recipe(tmp_path / "run", data={"path": str(clinic / name)}, model={"columns": columns})
        )
        found.append(task_of(recipe.recipe).load_data().fingerprint()["train"])
    with_columns, without, older, older_without = found
    assert without == older_without and len({with_columns, without, older}) == 3


@pytest.mark.slow
def test_the_recipe_on_the_embedded_drawings_trains_its_columns(tmp_path, text_encoder_dir):
    vision = "model.vision={backbone: timm/test_efficientnet, pretrained: false}"
    sizes = ["data.limit=48", "data.image_size=32", "data.max_length=4", "stages.0.epochs=1"]
    encoders = [vision, f"model.text.backbone={text_encoder_dir}"]
    run = mmhf.train("quickstart/columns", [*encoders, *sizes, "~release", f"training.output_dir={tmp_path / 'run'}"])
    assert 0 <= run.metrics["test_columns_only_accuracy"] <= 1
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "logistic regression on columns" in evaluation["baselines"]["test"]
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert weights["columns_projection.0.weight"].shape == (32, 2 + 4)


def test_the_recipe_for_ham10000_and_isic_2020_finds_their_columns(tmp_path):
    common = {"sex": ["male", "female", "unknown"] * 8, "age": ["40.0", "", "60.0", "55.0"] * 6}
    ham = {"lesion_id": range(24), "image_id": range(24), "dx": ["mel", "nv"] * 12, "dx_type": ["histo"] * 24}
    isic = {"image_name": range(24), "patient_id": range(24), "diagnosis": ["melanoma", "nevus", "unknown"] * 8}
    tables = {
        "ham10000/HAM10000_metadata.csv": {**ham, **common, "localization": ["back", "lower extremity"] * 12},
        "isic2020/train.csv": {**isic, "sex": common["sex"], "age_approx": common["age"]}
        | {"anatom_site_general_challenge": ["torso", "palms/soles", ""] * 8},
    }
    for path, table in tables.items():
        (tmp_path / path).parent.mkdir()
        pd.DataFrame(table).to_csv(tmp_path / path, index=False)
    changes = [f"data.path={tmp_path}", "data.filters.min_samples_per_label=2", "model.columns.min_rows=1"]
    recipe = load_recipe("dermatology/columns", changes).recipe
    task = task_of(recipe)
    features = task.model_options(task.load_data(check_images=False))["columns"]
    sites = {"back", "lower extremity", "torso", "palms/soles"}
    assert features.describe()["sex"] == ["female", "male"] and set(features.describe()["site"]) <= sites
    assert features.numbers[0].may_lack and 40 <= features.numbers[0].center <= 60
