from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from timm.layers import DropPath, PatchDropout
from transformers import TrainerCallback, pipeline

import mmhf
from mmhf.cli import main
from mmhf.data.loading import load_data
from mmhf.errors import InputError
from mmhf.evaluation.retrieval import evaluate_retrieval
from mmhf.inference.loading import load_model
from mmhf.recipe import recipe_from_dict
from mmhf.sample_data import read_sample
from mmhf.tasks import task_of
from mmhf.tasks.contrastive import Contrastive, SplitEmbeddings
from tests.cli.test_metrics_table import undefined_numbers

RECIPE: dict[str, Any] = {
    "task": "contrastive",
    "model": {
        "vision": {"patch_size": 8, "width": 16, "layers": 1, "heads": 2, "pooling": "avg"},
        "text": {"width": 16, "layers": 1, "heads": 2, "vocab_size": 300},
        "embedding_dim": 8,
    },
    "data": {"source": "sample", "image_size": 32, "max_length": 12, "limit": 24, "find_duplicates": "never"},
    "contrastive": {"batch_size": 12, "matryoshka": [3, 8]},
    "training": {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "metric_for_best_model": "mean_recall",
    },
    "evaluation": {
        "splits": ["test"],
        "subgroups": ["group"],
        "zero_shot": {
            "data": {"source": "sample", "image_size": 32, "limit": 30},
            "templates": ["a drawing of a {}.", "{}"],
        },
    },
}


def task_with(**changes: Any) -> Contrastive:
    values = {**RECIPE, **{key: {**RECIPE.get(key, {}), **value} for key, value in changes.items()}}
    task = task_of(recipe_from_dict(values, name="tiny").recipe)
    assert isinstance(task, Contrastive)
    return task


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the whole road, through the command line."""
    folder = tmp_path_factory.mktemp("contrastive")
    recipe = {**RECIPE, "training": {**RECIPE["training"], "output_dir": str(folder / "run")}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", str(folder / "tiny.yaml")]) == 0
    return folder / "run"


@pytest.mark.slow
def test_the_road_ends_in_a_run_folder_with_retrieval_metrics(run_folder: Path) -> None:
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert not undefined_numbers(run_folder)
    assert {"test_loss", "test_image_to_text_recall@10", "test_text_to_image_map"} <= set(metrics)
    report = (run_folder / "report.html").read_text()
    assert "Captions whose image is found last: test" in report
    assert (run_folder / "plots" / "test_recall.png").is_file()
    assert "Embeddings: test" in report and (run_folder / "plots" / "test_embeddings.png").is_file()
    groups = json.loads((run_folder / "evaluation.json").read_text())["tables"]["test"]["By group"]
    assert sum(row["rows"] for row in groups) == 24 and all("mean_recall" in row for row in groups)
    history = json.loads((run_folder / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_mean_recall" in entry] == [2, 4]


def test_metrics_are_those_of_embedding_the_split_by_hand(run_folder: Path) -> None:
    model, processor = load_model(run_folder, device=torch.device("cpu"))
    data = task_with().load_data(splits=["test"])
    images, texts, owners = [], [], []
    for number, row in enumerate(data.splits["test"]):
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        output = model(**processor(images=image, text=row["captions"]))
        images.append(output.image_embeds.detach())
        texts.append(output.text_embeds.detach())
        owners += [number] * len(row["captions"])
    expected = evaluate_retrieval(torch.cat(images), torch.cat(texts), np.array(owners)).metrics
    metrics = json.loads((run_folder / "metrics.json").read_text())
    for name, value in expected.items():
        assert metrics[f"test_{name}"] == pytest.approx(value, abs=1e-5), name
    shorter = evaluate_retrieval(torch.cat(images)[:, :3], torch.cat(texts)[:, :3], np.array(owners)).metrics
    for name in ("mean_recall", "image_to_text_recall@1", "text_to_image_recall@10"):
        assert metrics[f"test_first_3_{name}"] == pytest.approx(shorter[name], abs=1e-5), name
    assert "first_3_mean_recall" in (run_folder / "report.html").read_text()
    history = json.loads((run_folder / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if "eval_first_3_mean_recall" in entry]) == 2
    assert model.config.matryoshka == [3, 8]


def test_zero_shot_accuracy_is_that_of_prompts_by_hand(run_folder: Path) -> None:
    model, processor = load_model(run_folder, device=torch.device("cpu"))
    section = recipe_from_dict(RECIPE, name="tiny").recipe.evaluation.zero_shot
    data = load_data(section.data, task="image-classification", splits=["test"])
    classes = []
    for name in data.label_names:
        prompts = model(**processor(text=[f"a drawing of a {name}.", name])).text_embeds
        classes.append(torch.nn.functional.normalize(prompts.mean(dim=0), dim=0))
    hits = []
    for row in data.splits["test"]:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        embed = model(**processor(images=image)).image_embeds[0]
        hits.append(int((torch.stack(classes) @ embed).argmax()) == row["label"])
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["test_zero_shot_accuracy"] == pytest.approx(np.mean(hits))
    history = json.loads((run_folder / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if "eval_zero_shot_accuracy" in entry]) == 2


@pytest.mark.slow
def test_a_finished_run_is_evaluated_planned_and_served(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_folder), "--split", "test", "--output", str(run_folder / "again")]) == 0
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (run_folder, run_folder / "again"))
    assert two["test_text_to_image_map"] == pytest.approx(one["test_text_to_image_map"], abs=1e-6)
    assert main(["plan", str(run_folder / "recipe.yaml")]) == 0
    assert "12 = 4 a device × 3 accumulated × 1 processes" in " ".join(capsys.readouterr().out.split())
    drawing = read_sample("test")["image"][0].as_py()["bytes"]
    path = run_folder / "drawing.png"
    path.write_bytes(drawing)
    classify = pipeline("zero-shot-image-classification", model=str(run_folder))
    answers = classify(str(path), ["red heart", "a dog"], hypothesis_template="{}")
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)


def test_going_on_from_a_run_keeps_its_tokenizer_and_weights(run_folder: Path) -> None:
    task = task_with()
    data = task.load_data()
    processor = task.build_processor(data, parent=run_folder)
    model = task.build_model(data, processor=processor, parent=run_folder)
    trained, old = load_model(run_folder, device=torch.device("cpu"))
    assert processor.tokenizer.get_vocab() == old.tokenizer.get_vocab()
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


def test_all_captions_make_longer_epochs() -> None:
    task = task_with(data={"captions": "all", "keywords": True})
    data = task.load_data(splits=["train"])
    captions = sum(len(row) for row in data.splits["train"]["captions"])
    assert task.num_train_rows(data) == captions > len(data.splits["train"])


def test_each_image_counts_once_and_unreadable_ones_not_at_all() -> None:
    texts, images = np.eye(5, 3), np.arange(15).reshape(5, 3)
    found = SplitEmbeddings.of((texts, images), np.array([7, 7, -1, 4, 9]))
    assert found.rows.tolist() == [4, 7, 9]
    assert found.owners.tolist() == [1, 1, -1, 0, 2]
    assert found.images.tolist() == images[[3, 0, 4]].tolist()
    assert len(found.texts) == 5


def test_metric_names_and_streams_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(InputError, match=r"'recall@10' is not measured"):
        task_with(training={"metric_for_best_model": "recall@10"})
    with pytest.raises(InputError, match=r"zero_shot_accuracy needs `evaluation\.zero_shot`, which is absent"):
        task_with(training={"metric_for_best_model": "zero_shot_accuracy"}, evaluation={"zero_shot": None})
    task = task_with()
    data = task.load_data(splits=["train"])
    data.splits["train"] = data.splits["train"].to_iterable_dataset()
    with pytest.raises(InputError, match=r"model\.text\.tokenizer: none is named, and one cannot be learnt"):
        task.build_processor(data)


@pytest.mark.slow
def test_the_recipe_with_hard_negatives_looks_for_them(
    tmp_path: Path, text_encoder_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoders = ["model.vision={backbone: timm/test_efficientnet, pretrained: false}"]
    encoders.append(f"model.text.backbone={text_encoder_dir}")
    sizes = ["data.limit=40", "data.image_size=32", "contrastive.batch_size=10", "stages.0.epochs=3"]
    sizes += ["training.per_device_train_batch_size=10", f"training.output_dir={tmp_path / 'run'}", "release=null"]
    with caplog.at_level("INFO", logger="mmhf.training.hard_negatives"):
        run = mmhf.train("quickstart/hard_negatives", [*encoders, *sizes])
    found = [record.getMessage() for record in caplog.records if "have hard negatives" in record.getMessage()]
    assert [message.split(":")[0] for message in found] == ["Epoch 1", "Epoch 2"]
    assert 0 < run.metrics["test_mean_recall"] <= 1


@pytest.mark.slow
def test_patches_and_layers_are_left_out_until_the_image_tower_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLIP and stochastic depth in the first stage; in the second the text tower learns beside a locked one (LiT)."""
    steps: dict[str, set[int]] = {"PatchDropout": set(), "DropPath": set()}

    class Watch(TrainerCallback):
        step = 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            Watch.step = state.global_step

    for layer in (PatchDropout, DropPath):

        def forward(self: Any, given: torch.Tensor, as_timm: Any = layer.forward) -> torch.Tensor:
            kept: torch.Tensor = as_timm(self, given)
            if kept.shape != given.shape or not torch.equal(kept, given):
                steps[type(self).__name__].add(Watch.step)
            return kept

        monkeypatch.setattr(layer, "forward", forward)
    tower = {"backbone": "timm/test_vit", "pretrained": False, "patch_dropout": 0.5, "stochastic_depth": 0.5}
    stages = [{"name": "both", "steps": 3, "train": "all"}, {"name": "text", "steps": 3, "train": ["!vision"]}]
    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    recipe = {
        **RECIPE,
        "model": {**RECIPE["model"], "vision": tower},
        "stages": stages,
        "training": {
            "per_device_train_batch_size": 12, "learning_rate": 1e-2, "save_total_limit": 2, **saving,
            "output_dir": str(tmp_path / "run"),
        },
        "evaluation": {"splits": ["test"]},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    mmhf.train(tmp_path / "tiny.yaml", callbacks=[Watch()])
    assert steps == {"PatchDropout": {0, 1, 2}, "DropPath": {0, 1, 2}}
    both, end = (load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors") for step in (3, 6))
    moved = {name.partition(".")[0] for name, value in end.items() if not torch.equal(value, both[name])}
    assert "text" in moved and "vision" not in moved
    assert {name.partition(".")[0] for name in end} >= {"vision", "text"}
