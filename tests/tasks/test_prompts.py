"""Prompts by column in a whole run: what is refused, what is learnt, and that all roads give the same captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from transformers import set_seed

import mmhf
from mmhf import pipeline
from mmhf.cli import main
from mmhf.errors import InputError
from mmhf.inference import JobSettings, predict_table
from mmhf.inference.loading import load_model
from mmhf.inference.serving.limits import Limits, RefusedError
from mmhf.inference.serving.schemas import Generation, Input
from mmhf.inference.serving.services import PredictService
from mmhf.recipe import load_recipe
from mmhf.sample_data import read_sample
from mmhf.tasks import task_of

PROMPT = "a {kind} by {maker}:"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings with a kind, which one training row lacks, and a maker."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = []
    for index, drawing in enumerate(read_sample("train").slice(0, 32).to_pylist()):
        (folder / f"{index}.png").write_bytes(drawing["image"]["bytes"])
        kind = None if index == 3 else drawing["subgroup"]
        split = ("train", "train", "train", "validation")[index % 4] if index != 3 else "train"
        rows.append([f"{index}.png", drawing["caption"], kind, ("me", "somebody else")[index % 2], split])
    columns = ["image", "caption", "kind", "maker", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "table.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def write_recipe(shop: Path) -> Callable[..., Path]:
    def write(run: Path, *, model: dict[str, Any] | None = None, **changes: Any) -> Path:
        language = {"backbone": "qwen3", "pretrained": False, "config": SIZES, "tokenizer": {"vocab_size": 300}}
        values = {
            "task": "image-captioning",
            "model": {
                "vision": {"backbone": "timm/test_efficientnet", "pretrained": False, "features": "avg"},
                "language": language,
                "projector": {"prefix_length": 2, "hidden_dims": []},
                "freeze_language": False,
                "prompt": PROMPT,
                **(model or {}),
            },
            "data": {
                "source": "table",
                "path": str(shop / "table.csv"),
                "split_column": "split",
                "image_size": 32,
                "max_length": 36,
                "find_duplicates": "never",
            },
            "generation": {"max_new_tokens": 6},
            "training": {
                "output_dir": str(run),
                "max_steps": 4,
                "per_device_train_batch_size": 8,
                "learning_rate": 1e-2,
                "eval_strategy": "steps",
                "eval_steps": 2,
                "use_cpu": True,
            },
            "evaluation": {"generate_rows": 4, "bootstrap": 0, "splits": ["validation"]},
            **changes,
        }
        run.parent.mkdir(parents=True, exist_ok=True)
        run.with_suffix(".yaml").write_text(yaml.safe_dump(values))
        return run.with_suffix(".yaml")

    return write


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", str(write_recipe(run))]) == 0
    return run


def test_a_run_lists_rows_without_a_value_and_keeps_the_prompt(trained: Path) -> None:
    listed = pd.read_csv(trained / "bad_examples.csv")
    assert listed[["split", "row", "reason"]].to_numpy().tolist() == [
        ["train", 4, "kind is empty, and the prompt needs it"]
    ]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"validation_loss", "validation_rougeL"} <= metrics.keys()
    for name in ("config.json", "processor_config.json"):
        assert json.loads((trained / name).read_text())["prompt_template"] == PROMPT


def test_pipeline_predict_and_server_write_what_the_processor_and_the_model_do(
    trained: Path, shop: Path, tmp_path: Path
) -> None:
    rows = pd.read_csv(shop / "table.csv")
    predict_table(trained, shop / "table.csv", tmp_path / "out.csv", JobSettings(device="cpu", batch_size=5))
    predicted = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert predicted["error"].tolist() == [
        "columns.kind: is missing, and the prompt needs it" if n == 3 else "" for n in range(32)
    ]
    caption = pipeline("image-captioning", model=trained)
    service = PredictService(*load_model(trained, device=torch.device("cpu")))
    options = service.options(None, Generation())
    for number in (0, 5, 6):
        columns = {name: rows[name][number] for name in ("kind", "maker")}
        image = shop / f"{number}.png"
        (answer,) = caption({"image": str(image), "columns": columns})
        assert answer["caption"] == predicted["caption"][number]
        given = Input(image=image.read_bytes(), columns=columns)
        (served,) = service.run(options, [service.read(given, "inputs.0", Limits())])
        assert served.caption == answer["caption"]
    assert service.reads == ["image", "columns"] and service.columns is not None
    assert service.columns.describe() == {"kind": "text", "maker": "text"}
    service.warm_up()


def test_answers_of_a_trained_model_are_measured_without_its_recipe(trained: Path, tmp_path: Path) -> None:
    assert "validation_exact_match" not in json.loads((trained / "metrics.json").read_text())
    assert main(["evaluate", str(trained), "evaluation.answers=true", "--output", str(tmp_path / "answers")]) == 0
    metrics = json.loads((tmp_path / "answers" / "metrics.json").read_text())
    assert 0 <= metrics["validation_exact_match"] <= 1
    assert "exact_match" in (tmp_path / "answers" / "report.html").read_text()


def test_what_cannot_be_asked_is_named(trained: Path, shop: Path, tmp_path: Path) -> None:
    image = str(shop / "0.png")
    caption = pipeline("image-captioning", model=trained)
    for given, message in (
        (image, 'an input needs "columns", a dict with values of kind, maker'),
        ({"image": image, "columns": {"kind": "a"}}, "columns.maker: is missing, and the prompt needs it"),
        ({"image": image, "columns": {"kid": "a"}}, "columns.kid: the prompt names no such column; did you mean kind"),
        ({"image": image, "columns": "a"}, "columns: expected a dict of values by column, got 'a'"),
    ):
        with pytest.raises(InputError, match=message):
            caption(given)
    model, processor = load_model(trained, device=torch.device("cpu"))
    service = PredictService(model, processor)
    content = (shop / "0.png").read_bytes()
    for columns, message in (
        (None, "inputs.0.columns: is missing; the model reads image and columns."),
        ({"kind": "a"}, "inputs.0.columns.maker: is missing, and the prompt needs it."),
    ):
        with pytest.raises(RefusedError, match=message):
            service.read(Input(image=content, columns=columns), "inputs.0", Limits())
    pd.DataFrame({"image": ["0.png"], "kinds": ["a"], "maker": ["b"]}).to_csv(shop / "other.csv", index=False)
    with pytest.raises(InputError, match=r"no column 'kind'.*did you mean.*kinds"):
        predict_table(trained, shop / "other.csv", tmp_path / "o.csv", JobSettings(device="cpu"))
    settings = JobSettings(device="cpu", columns={"kind": "kinds"})
    assert predict_table(trained, shop / "other.csv", tmp_path / "o.csv", settings).unpredicted == 0


def test_a_column_that_the_table_lacks_is_named_before_a_model_is_built(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmhf.tasks.image_captioning.build_captioner_model", None)
    recipe = load_recipe(write_recipe(tmp_path / "run", model={"prompt": "a {kin}:"})).recipe
    with pytest.raises(InputError, match=r"no column 'kin'.*did you mean.*kind"):
        task_of(recipe).load_data()


def test_a_missing_value_can_be_named_and_long_prompts_are_listed(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    named = {"prompt_missing": "a thing that nobody has ever named until today"}
    task = task_of(load_recipe(write_recipe(tmp_path / "run", model=named)).recipe)
    data = task.load_data()
    assert not data.bad_examples and data.num_rows("train") == 25
    task.build_processor(data)
    (bad,) = [each for each in data.bad_examples if "prompt" in each.reason]
    assert (bad.split, bad.row) == ("train", 4) and "it is cut at its beginning to 36" in bad.reason
    fingerprint = data.fingerprint()["train"]
    plain = task_of(load_recipe(write_recipe(tmp_path / "plain", model={"prompt": ""})).recipe).load_data()
    assert plain.num_rows("train") == 25 and plain.fingerprint()["train"] != fingerprint


def test_a_plan_of_a_prompted_captioner_needs_no_data(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    assert main(["plan", str(write_recipe(tmp_path / "run"))]) == 0


def test_metrics_of_answers_are_measured_where_captions_are_answers(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "run"), ["training.metric_for_best_model=vqa_accuracy"]).recipe
    with pytest.raises(InputError, match="metric_for_best_model: 'vqa_accuracy' is not measured"):
        task_of(recipe)


@pytest.mark.slow
def test_questions_are_answered_and_measured_on_the_whole_road(
    shop: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    table = pd.read_csv(shop / "table.csv").head(16)
    rows = [
        {"image": row.image, "question": question, "answer": answer, "split": row.split}
        for number, row in enumerate(table.itertuples())
        for question, answers in (
            ("who made it", [row.maker] * 3 + ["nobody"]),
            ("how many", ["one", "1", "2", "a 1"]),
        )
        for answer in answers
    ]
    rows += [{**rows[0], "question": ""}, {**rows[0], "question": "why", "answer": ""}]
    pd.DataFrame(rows).to_csv(shop / "questions.csv", index=False)
    run = tmp_path / "run"
    changes = [
        "model.prompt='{question}?'",
        f"data.path={shop / 'questions.csv'}",
        "data.columns.captions=answer",
        "evaluation.answers=true",
        "training.metric_for_best_model=vqa_accuracy",
        "training.save_strategy=steps",
        "training.save_steps=2",
    ]
    assert main(["train", str(write_recipe(run)), *changes]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert 0 <= metrics["validation_vqa_accuracy"] <= metrics["validation_exact_match"] <= 1
    assert {"vqa_accuracy", "exact_match"} <= evaluation["protocols"].keys()
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert any("eval_vqa_accuracy" in entry for entry in log)
    assert evaluation["baselines"]["validation"].keys() == {"most frequent answer to the question"}
    report = (run / "report.html").read_text()
    assert "VQA accuracy" in report and "who made it?" in report
    listed = pd.read_csv(run / "bad_examples.csv")["reason"].tolist()
    assert "question is empty, and the prompt needs it" in listed and any("no caption" in each for each in listed)


def draw_shapes(folder: Path, count: int) -> Path:
    """A table of coloured shapes, each with what it is in English, German and French; a quarter is to validate."""
    colours = {
        "red": ("rot", "rouge"),
        "green": ("grün", "vert"),
        "blue": ("blau", "bleu"),
        "yellow": ("gelb", "jaune"),
    }
    shapes = {
        "circle": ("er Kreis", "cercle"),
        "square": ("es Quadrat", "carré"),
        "triangle": ("es Dreieck", "triangle"),
    }
    random, rows = Random(0), []
    for number in range(count):
        colour, shape = random.choice(list(colours)), random.choice(list(shapes))
        picture, side = Image.new("RGB", (32, 32), "black"), random.randint(14, 22)
        corner = (random.randint(0, 31 - side), random.randint(0, 31 - side))
        box = (*corner, corner[0] + side, corner[1] + side)
        draw = ImageDraw.Draw(picture)
        if shape == "triangle":
            draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) / 2, box[1])], fill=colour)
        else:
            {"circle": draw.ellipse, "square": draw.rectangle}[shape](box, fill=colour)
        picture.save(folder / f"{number}.png")
        (german, french), (form, name) = colours[colour], shapes[shape]
        said = {"English": f"a {colour} {shape}", "German": f"ein {german}{form}", "French": f"un {name} {french}"}
        rows += [(f"{number}.png", ("train", "validation")[number % 4 == 3], *each) for each in said.items()]
    pd.DataFrame(rows, columns=["image", "split", "language", "caption"]).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


@pytest.mark.slow
def test_one_table_has_captions_in_several_languages(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """An image has captions of its own in each, and the prompt says in which it is answered."""
    table = draw_shapes(tmp_path, 96)
    changes = [
        "model.prompt='in {language}:'",
        "model.freeze_vision=false",
        f"data.path={table}",
        "generation.max_new_tokens=24",
        *("training.max_steps=150", "training.eval_steps=150", "training.learning_rate=5e-3"),
        "evaluation={answers: true, subgroups: [language], bootstrap: 0, splits: [validation]}",
    ]
    run = mmhf.train(write_recipe(tmp_path / "run"), changes)
    rows = pd.read_csv(table)
    data = mmhf.load_dataset(Path(run.folder) / "recipe.yaml")
    assert {split: len(part) for split, part in data.items()} == {"train": 216, "validation": 72}
    shown = [
        {"image": str(tmp_path / row.image), "columns": {"language": row.language}} for row in rows[:36].itertuples()
    ]
    answers = [each["caption"] for (each,) in pipeline("image-captioning", model=run.folder)(shown)]
    assert [each.split()[0] for each in answers] == ["a", "ein", "un"] * 12
    evaluation = json.loads((Path(run.folder) / "evaluation.json").read_text())
    by_language = {each["language"]: each["rows"] for each in evaluation["tables"]["validation"]["By language"]}
    assert by_language == {"English": 24, "French": 24, "German": 24}


@pytest.mark.slow
def test_stored_features_give_the_losses_of_recomputed_ones_with_prompts(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    losses = []
    for mode in ("off", "on"):
        set_seed(0)
        run = tmp_path / mode
        values = yaml.safe_load(write_recipe(run).read_text())
        values["training"]["logging_steps"] = 1
        values["cache"] = {"mode": mode}
        run.with_suffix(".yaml").write_text(yaml.safe_dump(values))
        assert main(["train", str(run.with_suffix(".yaml"))]) == 0
        log = json.loads((run / "trainer_state.json").read_text())["log_history"]
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_the_recipe_on_the_embedded_drawings_trains(tmp_path: Path) -> None:
    changes = ["model.vision={backbone: timm/test_efficientnet, pretrained: false, features: patches}"]
    changes += ["data.limit=64", "data.image_size=32", "training.num_train_epochs=1", "evaluation.generate_rows=8"]
    run = mmhf.train("quickstart/prompts", [*changes, "~release", f"training.output_dir={tmp_path / 'run'}"])
    assert run.metrics["validation_rougeL"] >= 0


@pytest.mark.slow
def test_questions_about_the_embedded_drawings_are_learnt_and_compared(tmp_path: Path) -> None:
    changes = ["data.limit=96", "data.image_size=32", "training.num_train_epochs=1", "training.eval_strategy=epoch"]
    changes += ["training.save_strategy=epoch", "evaluation.generate_rows=8", "evaluation.bootstrap=0"]
    run = mmhf.train("quickstart/questions", [*changes, "~release", f"training.output_dir={tmp_path / 'run'}"])
    evaluation = json.loads((Path(run.folder) / "evaluation.json").read_text())
    kinds = {row["kind"]: row for row in evaluation["tables"]["test"]["By kind"]}
    assert kinds.keys() == {"keyword", "group", "yes or no"}
    right = sum(row["rows"] * row["exact_match"] for row in kinds.values())
    assert right / 96 == pytest.approx(run.metrics["test_exact_match"]) and run.metrics["test_vqa_accuracy"] >= 0
    beside = evaluation["baselines"]["test"]
    assert beside.keys() == {"most frequent answer to the question", "nearest neighbour"}
    assert all(0.1 < each["exact_match"] < 0.9 for each in beside.values())
