"""Checkpoints of the CLIP program."""

from __future__ import annotations

import json

import pytest
import torch
from seed_models import ClipFromScratch, Config
from seed_texts import WORDS
from transformers import pipeline

import mmhf
from mmhf.cli import main
from mmhf.inference.loading import load_model
from mmhf.models.tokenizers import train_text_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_text_tokenizer(WORDS, vocab_size=400, max_length=12).save_pretrained(folder)
    return folder


def save(tmp_path, **options):
    torch.manual_seed(0)
    config = Config()
    seed = ClipFromScratch(config, **options).eval()
    path = tmp_path / "checkpoint_epoch_10.pth"
    state = {"epoch": 10, "model_state_dict": seed.state_dict(), "loss": 1.9, "config": config}
    torch.save({**state, "optimizer_state_dict": torch.optim.Adam(seed.parameters()).state_dict()}, path)
    return seed, path


@pytest.mark.parametrize("causal", [False, True])
def test_the_converted_model_has_the_seeds_logits(causal, tmp_path, convert, tokenizer):
    seed, path = save(tmp_path, causal=causal)
    output = tmp_path / "clip"
    attention = "causal" if causal else "bidirectional"
    convert(path, "-o", output, "--tokenizer", tokenizer, f"model.text.attention={attention}")
    model, processor = load_model(output)
    images = torch.randn(3, 3, 32, 32)
    encoded = processor(text=["a dog runs", "two dogs and a red bird"])
    ends = (encoded["input_ids"] == processor.tokenizer.eos_token_id).int().argmax(dim=1)
    with torch.no_grad():
        expected = seed(images, encoded["input_ids"], ends)
        logits = model(pixel_values=images, **encoded).logits_per_image
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert json.loads((output / "metrics.json").read_text()) == {"train_loss": 1.9}


def test_the_settings_are_the_seeds(tmp_path, convert, tokenizer):
    _, path = save(tmp_path)
    convert(path, "-o", tmp_path / "clip", "--tokenizer", tokenizer)
    recipe = mmhf.load_recipe(tmp_path / "clip" / "recipe.yaml").recipe
    assert (recipe.model.vision.heads, recipe.model.text.heads, recipe.model.text.layers) == (2, 3, 3)
    assert (recipe.data.image_size, recipe.data.max_length, recipe.model.temperature.start) == (32, 12, 0.07)
    assert recipe.training["per_device_train_batch_size"] == 64


@pytest.mark.slow
def test_what_is_converted_evaluates_serves_and_is_gone_on_with(tmp_path, convert, tokenizer, write_images, capsys):
    seed, path = save(tmp_path)
    torch.save(seed.state_dict(), tmp_path / "best_model.pth")  # the weights alone
    output = tmp_path / "clip"
    heads = ["model.vision.heads=2", "model.text.heads=3"]
    convert(tmp_path / "best_model.pth", "-o", output, "--tokenizer", tokenizer, *heads)
    data = tmp_path / "rows.jsonl"
    rows = [{"image": name, "caption": WORDS[number % 3]} for number, name in enumerate(write_images(8))]
    data.write_text("\n".join(map(json.dumps, rows)))
    shared = [f"data={{source: table, path: {data}, image_size: 32, max_length: 12}}"]
    assert main(["evaluate", str(output), str(output / "recipe.yaml"), *shared, "--split", "test"]) == 0
    assert "recall" in capsys.readouterr().out
    classify = pipeline("zero-shot-image-classification", model=str(output))
    assert (
        len(classify(str(tmp_path / rows[0]["image"]), candidate_labels=["a dog", "a bird"], hypothesis_template="{}"))
        == 2
    )
    run = [
        f"training.output_dir={tmp_path / 'run'}",
        f"init_from={output}",
        "training.max_steps=1",
        "~training.num_train_epochs",
    ]
    batch = ["contrastive.batch_size=4", "training.per_device_train_batch_size=4", "evaluation.splits=[test]"]
    assert main(["train", str(output / "recipe.yaml"), *shared, *run, *batch]) == 0


def test_a_vocabulary_in_the_checkpoint_is_its_tokenizer(tmp_path, convert):
    seed, path = save(tmp_path)
    words = {"<pad>": 0, "<unk>": 1, "<end>": 2, "a": 3, "dog": 4}
    torch.save({"model_state_dict": seed.state_dict(), "config": Config(), "vocab": words}, path)
    convert(path, "-o", tmp_path / "clip")
    _, processor = load_model(tmp_path / "clip")
    assert processor.tokenizer("A dog runs")["input_ids"] == [3, 4, 1]


def test_what_does_not_fit_is_named(tmp_path, refused, tokenizer):
    seed, path = save(tmp_path)
    line = refused(path, "-o", tmp_path / "clip")
    assert "no tokenizer in it; name that of its 400 words with --tokenizer" in line
    state = seed.state_dict()
    del state["text.norm.weight"]
    torch.save({"model_state_dict": state, "config": Config()}, path)
    assert "text has 0 norms outside its 3 blocks" in refused(path, "-o", tmp_path / "clip", "--tokenizer", tokenizer)
