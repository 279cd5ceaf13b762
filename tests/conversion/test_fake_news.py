"""Checkpoints of the fake-news program."""

from __future__ import annotations

import csv

import pytest
import torch
from seed_models import FakeNewsBranches, FakeNewsFlat, settle

from mmhf.cli import main
from mmhf.hub.manifest import verify_release
from mmhf.inference.loading import load_model

BATCH = {
    "input_ids": torch.tensor([[1, 7, 9, 11, 2], [1, 8, 2, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed_class", [FakeNewsBranches, FakeNewsFlat])
def test_the_converted_model_has_the_seeds_logits(seed_class, distilbert, tmp_path, convert):
    torch.manual_seed(0)
    seed = settle(seed_class(distilbert))
    path, output = tmp_path / "best_model_1.6.pth", tmp_path / "release"
    torch.save({"epoch": 3, "model_state_dict": seed.state_dict(), "val_accuracy": 0.8}, path)
    convert(path, "-o", output, "--text", distilbert)
    release = verify_release(output)
    assert (release.version, release.metrics) == ("v1.6", {"validation_accuracy": 0.8})
    model, processor = load_model(output)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, logits = seed(images, **BATCH), model(pixel_values=images, **BATCH).logits
    if expected.shape[1] == 1:  # a sigmoid of one logit is a softmax of it and 0
        torch.testing.assert_close(logits.softmax(-1)[:, 1:], expected.sigmoid(), atol=1e-5, rtol=1e-5)
        expected = torch.cat([torch.zeros_like(expected), expected], dim=1)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert processor(text="two dogs")["input_ids"].shape[0] == 1


@pytest.mark.slow
def test_what_is_converted_evaluates_predicts_and_is_gone_on_with(distilbert, tmp_path, convert, write_images, capsys):
    torch.manual_seed(0)
    seed, output = settle(FakeNewsBranches(distilbert)), tmp_path / "release"
    torch.save({"model_state_dict": seed.state_dict()}, tmp_path / "best_model_1.7.pth")
    convert(tmp_path / "best_model_1.7.pth", "-o", output, "--text", distilbert, "--labels", "real,fake")
    names = write_images(8)
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_path", "text_content", "label"])
        writer.writerows([name, "a dog runs", number % 2] for number, name in enumerate(names))
    shared = [
        f"data.path={tmp_path / 'rows.csv'}",
        "data.image_size=32",
        "data.max_length=32",
        "data.split={validation: 0.25, test: 0.25}",
    ]
    assert main(["evaluate", str(output), *shared, "--split", "test"]) == 0
    assert "accuracy" in capsys.readouterr().out
    columns = ["--column", "image=image_path", "--column", "text=text_content"]
    predicted = tmp_path / "predicted.csv"
    assert (
        main(["predict", str(output), "--input", str(tmp_path / "rows.csv"), "--output", str(predicted), *columns])
        == 0
    )
    assert {row["label"] for row in csv.DictReader(predicted.open())} <= {"real", "fake"}
    run = [
        f"training.output_dir={tmp_path / 'run'}",
        f"init_from={output}",
        "training.max_steps=1",
        "~training.num_train_epochs",
    ]
    run.append("training.per_device_train_batch_size=2")
    assert main(["train", str(output / "recipe.yaml"), *shared, *run, "evaluation.splits=[test]"]) == 0


@pytest.mark.slow
def test_another_text_encoder_is_named(distilbert, tmp_path, refused):
    state = {"bert.embeddings.word_embeddings.weight": torch.zeros(10, 8)}
    torch.save({"model_state_dict": state}, tmp_path / "best_model_1.6.pth")
    line = refused(tmp_path / "best_model_1.6.pth", "-o", tmp_path / "out", "--text", distilbert)
    assert "none of resnet50" in line and "name its image encoder with --vision" in line
