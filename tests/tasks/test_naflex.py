"""Images in their own shape on the whole road: stored, trained, resumed, released, served and predicted alike."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from saved_families import save_tiny_family, write_image
from transformers import AutoModel, Siglip2Config, Siglip2ImageProcessor, Siglip2Model

import mmhf
from mmhf.cli import main
from mmhf.errors import InputError
from mmhf.export.folder import export_model
from mmhf.inference.demo.subjects import load_subject
from mmhf.inference.loading import load_model
from mmhf.models.backbones import load_encoder, load_encoder_config
from mmhf.models.encoders import timm_config
from mmhf.models.naflex import NaflexImageProcessor, PatchSequences
from mmhf.sample_data import read_sample
from tests.models.test_naflex import NARROW, PATCH, SIDE, STATISTICS, tiny_siglip2

SHAPES = [(48, 48), (96, 24), (24, 80), (70, 50)]
LANGUAGE = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of drawings that were stretched to several shapes, and two tiny encoders."""
    folder = tmp_path_factory.mktemp("naflex")
    rows = []
    for split, count in (("train", 16), ("validation", 8), ("test", 8)):
        for index, drawing in enumerate(read_sample("train" if split == "train" else "test").to_pylist()[:count]):
            name = f"{split}{index}.png"
            picture = Image.open(io.BytesIO(drawing["image"]["bytes"])).convert("RGB")
            picture.resize(SHAPES[index % len(SHAPES)]).save(folder / name)
            rows.append([name, drawing["caption"], f"class {index % 2}", split])
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["image", "text", "label", "split"], *rows])
    torch.manual_seed(0)
    for name, config in (
        ("naflexvit", timm_config("naflexvit_base_patch16_gap", STATISTICS, NARROW)),
        ("siglip2", tiny_siglip2()),
    ):
        AutoModel.from_config(config).save_pretrained(folder / name)
        Siglip2ImageProcessor(patch_size=PATCH).save_pretrained(folder / name)
    return folder


def recipe(work: Path, encoder: str, run: str, task: str = "image-classification", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "task": task,
        "model": {"vision": {"backbone": str(work / encoder)}},
        "data": {
            "source": "table",
            "path": str(work / "rows.csv"),
            "split_column": "split",
            "image_size": SIDE,
            "resize": "naflex",
        },
        "training": {
            "output_dir": str(work / run),
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "epoch",
            "report_to": "none",
        },
        "cache": "on",
        "stages": [
            {"name": "head", "epochs": 2, "train": ["head"], "learning_rate": 1e-2},
            {"name": "all", "epochs": 1, "train": "all", "learning_rate": 1e-3},
        ],
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
    return values


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["naflexvit", "siglip2"])
def test_a_classifier_stores_trains_resumes_and_is_served(encoder: str, work: Path) -> None:
    values = recipe(work, encoder, f"{encoder} run")
    planned = mmhf.plan(values)
    assert planned.problems == []
    assert planned.run["image shapes"].startswith(
        f"each image keeps its proportions, as at most 16 patches of {PATCH}"
    )
    assert planned.cached[0].startswith("vision") and planned.cached[1] == "nothing"
    run = work / f"{encoder} run"
    mmhf.train(values)

    # The same without stored features, and stopped on the way.
    mmhf.train(recipe(work, encoder, f"{encoder} recomputed", cache="off"))
    recomputed = load_file(work / f"{encoder} recomputed" / "model.safetensors")
    weights = load_file(run / "model.safetensors")
    assert all(torch.allclose(tensor, recomputed[name], atol=1e-4) for name, tensor in weights.items())
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for place in (0, 1):
        again = recipe(work, encoder, f"{encoder} again {place}")
        again["training"]["resume_from_checkpoint"] = str(checkpoints[place])
        mmhf.train(again)
        resumed = load_file(work / f"{encoder} again {place}" / "model.safetensors")
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in weights.items())

    releases = work / f"{encoder} releases"
    assert main(["release", str(run), "--repo", str(releases), "--version", "0.1"]) == 0
    release = releases / "v0.1"
    _, loaded = load_model(release, device=torch.device("cpu"))
    assert isinstance(loaded, NaflexImageProcessor)
    table, answers = _write_test_rows(work), work / f"{encoder}.csv"
    command = ["predict", str(release), "--input", str(table), "--output", str(answers), "--batch-size", "3"]
    assert main([*command, "--column", "image=image"]) == 0
    with answers.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    served = mmhf.pipeline("image-classification", model=str(release))
    together = served([str(work / f"test{index}.png") for index in range(len(rows))], batch_size=4)
    probabilities = []
    for row, answer in zip(rows, together, strict=True):
        said = {entry["label"]: entry["score"] for entry in answer}
        told = {name: float(row[f"probability_{name}"]) for name in said}
        np.testing.assert_allclose(list(told.values()), list(said.values()), rtol=0, atol=1e-6)
        probabilities.append([told["class 0"], told["class 1"]])
    metrics = json.loads((run / "metrics.json").read_text())
    truth = np.arange(len(rows)) % 2
    loss = -np.log(np.array(probabilities)[np.arange(len(rows)), truth]).mean()
    assert abs(metrics["test_loss"] - loss) < 1e-4
    assert metrics["test_accuracy"] == np.mean(np.argmax(probabilities, axis=1) == truth)
    assert np.std(np.array(probabilities)[:, 0]) > 1e-4, "images must differ for this test to show anything"


def _write_test_rows(work: Path) -> Path:
    lines = (work / "rows.csv").read_text(encoding="utf-8").splitlines()
    path = work / "test.csv"
    path.write_text("\n".join([lines[0], *(line for line in lines if line.startswith("test"))]) + "\n")
    return path


@pytest.mark.slow
def test_the_quickstart_reads_square_drawings_as_squares(tmp_path: Path) -> None:
    small = ["data.limit=48", "data.image_size=48", "stages.0.epochs=1", "evaluation.splits=[test]", "~release"]
    losses = []
    for resize in ("naflex", "squash"):
        output = [f"data.resize={resize}", f"training.output_dir={tmp_path / resize}"]
        losses.append(mmhf.train("quickstart/naflex", [*small, *output]).metrics["test_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    _, prepares = load_model(tmp_path / "naflex", device=torch.device("cpu"))
    assert isinstance(prepares, NaflexImageProcessor) and prepares.max_num_patches == 9


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-text-classification", "contrastive", "image-captioning"])
def test_other_families_read_images_in_their_own_shape(
    task: str, work: Path, text_encoder_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    run = NaflexImageProcessor._preprocess

    def watched(self: Any, images: list[torch.Tensor], **options: Any) -> Any:
        made = run(self, images, **options)
        seen.extend(tuple(shape) for shape in PatchSequences.of(made["pixel_values"]).shapes().tolist())
        return made

    monkeypatch.setattr(NaflexImageProcessor, "_preprocess", watched)
    values = recipe(work, "naflexvit", task, task)
    values["model"]["text"] = {"backbone": str(text_encoder_dir), "pooling": "mean"}
    values["model"]["embedding_dim"] = 8
    values["data"]["max_length"] = 16
    head = ["fusion", "head"]
    if task != "image-text-classification":
        values["data"]["columns"] = {"captions": "text"}
        values["data"]["find_duplicates"] = "never"
    if task == "contrastive":
        values["model"]["vision"]["pooling"] = "concat"
        values["contrastive"] = {"batch_size": 8}
        head = ["projections"]
    if task == "image-captioning":
        language = {"backbone": "qwen3", "pretrained": False, "config": LANGUAGE, "tokenizer": {"vocab_size": 300}}
        values["model"] = {
            "vision": {**values["model"]["vision"], "features": "pooler"},
            "language": language,
            "projector": {"prefix_length": 2, "hidden_dims": []},
        }
        values["generation"] = {"max_new_tokens": 4}
        head = ["projector", "language"]
    values["stages"][0]["train"] = head
    values["training"]["save_strategy"] = "no"
    values["release"] = {"repo": str(work / f"{task} releases"), "version": "0.1"}
    mmhf.train(values)
    assert set(seen) == {(4, 4), (2, 8), (7, 2), (3, 5)}
    metrics = json.loads((work / task / "metrics.json").read_text())
    assert metrics
    folder = work / f"{task} releases" / "v0.1"
    pair = {"image": str(work / "test1.png"), "text": "a frog"}
    name, given, options = {
        "image-text-classification": ("image-text-classification", pair, {}),
        "contrastive": ("zero-shot-image-classification", pair["image"], {"candidate_labels": ["frog", "lamp"]}),
        "image-captioning": ("image-captioning", pair["image"], {}),
    }[task]
    answers = [mmhf.pipeline(name, model=str(each))(given, **options) for each in (work / task, folder)]
    assert answers[0] == answers[1] and answers[0]


def test_what_cannot_keep_its_shape_is_refused_before_a_model_is_built(work: Path) -> None:
    plain = recipe(work, "naflexvit", "refused", cache="auto")
    plain["model"]["vision"] = {"backbone": "timm/test_vit", "pretrained": False}
    for ask in (mmhf.train, mmhf.plan):
        with pytest.raises(
            InputError, match=r"data.resize: naflex, but backbone timm/test_vit takes .* use squash, or"
        ):
            ask(plain)
    size = recipe(work, "naflexvit", "refused", data={"image_size": 30})
    for ask in (mmhf.train, mmhf.plan):
        with pytest.raises(InputError, match=r"data.image_size: 30 is no multiple of the 8 px .*; use 32"):
            ask(size)


@pytest.mark.slow
def test_what_a_model_of_own_shapes_cannot_do_is_refused(work: Path, tmp_path: Path) -> None:
    run = save_tiny_family("image classifier of own shapes", tmp_path / "run")
    (tmp_path / "photos").mkdir()
    picture = write_image(tmp_path / "photos" / "photo.jpg")
    with pytest.raises(InputError, match="graphs take images of one shape"):
        export_model(run, tmp_path / "exported")
    with pytest.raises(InputError, match="views: the model takes images in their own shape"):
        mmhf.predict(run, picture.parent, views={"horizontal_flip": True})
    model, processor = load_model(run, device=torch.device("cpu"))
    given = processor(images=[Image.open(picture)], return_tensors="pt")["pixel_values"]
    model.config.views = {"horizontal_flip": True}
    with pytest.raises(ValueError, match="have no views"):
        model(pixel_values=given)
    subject = load_subject(run, captions=[])
    assert not subject.explains and subject.answer(Image.open(picture), "").probabilities

    others = recipe(work, "naflexvit", "other", data={"resize": "squash"}, init_from=str(run), cache="off")
    others["model"]["reset_head"] = True
    with pytest.raises(InputError, match=r"data.resize: squash, but init_from .* prepares images by naflex"):
        mmhf.train(others)


@pytest.mark.slow
def test_a_teacher_of_own_shapes_teaches_a_student_of_squares(work: Path, tmp_path: Path) -> None:
    teacher = recipe(work, "siglip2", "teacher", release={"repo": str(work / "teachers"), "version": "0.1"})
    mmhf.train(teacher)
    student = recipe(work, "naflexvit", "student", data={"resize": "squash"})
    student["teacher"] = f"{work / 'teachers'}@v0.1"
    assert "asked once about 16 images" in mmhf.plan(student).run["teacher"]
    mmhf.train(student)
    assert json.loads((work / "student" / "metrics.json").read_text())


def test_the_image_encoder_of_a_whole_siglip2_is_taken(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    torch.manual_seed(0)
    whole = Siglip2Model(Siglip2Config(text_config=text, vision_config=tiny_siglip2().to_dict())).eval()
    whole.save_pretrained(tmp_path)
    config = load_encoder_config(str(tmp_path), modality="image")
    encoder = load_encoder(str(tmp_path), config, pretrained=True).eval()
    own, theirs = encoder.state_dict(), whole.vision_model.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())
