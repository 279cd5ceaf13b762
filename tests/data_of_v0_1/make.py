"""Make this folder's runs, releases and expected numbers; run once, by mmhf 0.1.0, and kept for the versions after it.

cd NEW_FOLDER && PYTHONPATH=MMHF_0.1.0 OMP_NUM_THREADS=1 python PATH/make.py

Each of the four families is trained for six steps on 24 drawings, stopped before the fifth (its last checkpoint is that of
step 4) and, in a copy, gone on with to the end, measured, released and asked. No augmentation and no dropout: the numbers
depend on the code, not on what a random generator gives. `adam_epsilon` is large, so that gradients which are zero but
for rounding do not move weights.
"""

from __future__ import annotations

import mmhf  # (first: it makes torchvision importable beside a CPU build of torch)

import argparse  # isort: skip
import contextlib
import csv
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    TrainerCallback,
    TrainerState,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from mmhf.cli import main, train

assert mmhf.__version__ == "0.1.0"

COLOURS = ["red", "green", "blue", "yellow"]
SHAPES = ["square", "disc", "cross"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
TRAINING = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 2e-2,
    "adam_epsilon": 1e-5,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "report_to": "none",
}
DATA = {"source": "table", "path": "rows.csv", "split_column": "split", "image_size": 32}
CAPTIONS = {**DATA, "max_length": 8, "columns": {"image": "image", "captions": ["text", "other"]}, "find_duplicates": "never"}
STAGES = [
    {"name": "head", "steps": 3, "train": ["head"], "schedule": "cosine"},
    {"name": "all", "steps": 3, "train": "all", "learning_rate": 5e-3},
]
RECIPES: dict[str, dict[str, Any]] = {
    "fusion": {
        "task": "image-text-classification",
        "model": {
            "vision": {"backbone": "encoders/vit", "pooling": "cls"},
            "text": {"backbone": "encoders/bert", "pooling": "mean"},
            "embedding_dim": 8,
            "fusion": {"strategy": "concat_mlp", "hidden_dims": [8], "dropout": 0.0},
        },
        "data": {**DATA, "max_length": 8, "columns": {"image": "image", "text": "text", "label": "fits"}},
        "stages": [{**STAGES[0], "train": ["fusion", "head"], "learning_rate": 0.1}, STAGES[1]],
    },
    "image_classifier": {
        "task": "image-classification",
        "model": {"vision": {"backbone": "encoders/resnet", "pooling": "avg"}, "head": {"dropout": [0.0, 0.0]}},
        "data": {**DATA, "columns": {"image": "image", "label": "shape"}},
        "stages": STAGES,
        "ema": {"decay": 0.9},
    },
    "captioner": {
        "task": "image-captioning",
        "model": {
            "vision": {"backbone": "encoders/vit", "features": "patches"},
            "language": {
                "backbone": "qwen3",
                "pretrained": False,
                "config": {**SIZES, "initializer_range": 0.3, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True},
                "tokenizer": {"vocab_size": 300},
            },
            "projector": {"hidden_dims": []},
            "freeze_language": False,
        },
        "data": CAPTIONS,
        "generation": {"max_new_tokens": 6},
        "training": {"max_steps": 6, "learning_rate": 5e-3, "metric_for_best_model": "loss"},
        "evaluation": {"bootstrap": 20, "baselines": False},
    },
    "dual_encoder": {
        "task": "contrastive",
        "model": {
            "vision": {"patch_size": 16, "width": 16, "layers": 2, "heads": 2, "pooling": "avg"},
            "text": {"width": 16, "layers": 2, "heads": 2, "vocab_size": 300},
            "embedding_dim": 8,
        },
        "data": {**CAPTIONS, "max_length": 40, "columns": {"image": "image", "captions": "text"}},
        "contrastive": {"batch_size": 8},
        "training": {"max_steps": 6, "learning_rate": 5e-3, "metric_for_best_model": "loss"},
    },
}
SERVED = {
    "fusion": ("image-text-classification", [{"image": "images/3.png", "text": "a red square"}], {}),
    "image_classifier": ("image-classification", ["images/3.png"], {}),
    "captioner": ("image-captioning", ["images/3.png"], {}),
    "dual_encoder": ("zero-shot-image-classification", ["images/3.png"], {"candidate_labels": ["a red cross", "a disc"]}),
}


def write_data() -> None:
    """24 drawings: 16 to train on, 4 to validate, 4 to test."""
    generator = np.random.default_rng(0)
    Path("images").mkdir()
    with open("rows.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "text", "other", "shape", "fits", "split"])
        for number in range(24):
            colour, shape = COLOURS[number % 4], SHAPES[number % 3]
            left, top = (int(value) for value in generator.integers(2, 8, 2))
            _draw(colour, shape, left=left, top=top).save(f"images/{number}.png", optimize=True)
            fits = "yes" if number % 5 < 2 else "no"
            said = colour if fits == "yes" else COLOURS[(number + 1) % 4]
            split = "train" if number < 16 else "validation" if number < 20 else "test"
            writer.writerow([f"images/{number}.png", f"a {said} {shape}", f"{shape} in {said}", shape, fits, split])


def _draw(colour: str, shape: str, *, left: int, top: int) -> Image.Image:
    image = Image.new("RGB", (40, 36), "white")
    pen, (right, bottom) = ImageDraw.Draw(image), (left + 24, top + 24)
    if shape == "square":
        pen.rectangle((left, top, right, bottom), fill=colour)
    elif shape == "disc":
        pen.ellipse((left, top, right, bottom), fill=colour)
    else:
        pen.rectangle((left + 9, top, left + 15, bottom), fill=colour)
        pen.rectangle((left, top + 9, right, top + 15), fill=colour)
    return image


def write_encoders() -> None:
    torch.manual_seed(0)
    images = ViTImageProcessorPil(size={"height": 32, "width": 32})
    ViTModel(ViTConfig(image_size=32, patch_size=16, **SIZES, **PLAIN)).save_pretrained("encoders/vit")
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).save_pretrained("encoders/resnet")
    for name in ("vit", "resnet"):
        images.save_pretrained(f"encoders/{name}")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "in", *COLOURS, *SHAPES]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **roles).save_pretrained("encoders/bert")
    sizes = {**SIZES, "vocab_size": len(words), "max_position_embeddings": 16}
    BertModel(BertConfig(**sizes, **PLAIN)).save_pretrained("encoders/bert")


def write_recipe(name: str) -> Path:
    values = dict(RECIPES[name])
    values["training"] = {**TRAINING, **values.get("training", {}), "output_dir": f"stopped/{name}"}
    values["evaluation"] = {**values.get("evaluation", {}), "splits": ["test"]}
    values["release"] = {"repo": f"released/{name}", "version": "0.1"}
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


class StopAtStep4(TrainerCallback):
    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            raise KeyboardInterrupt


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0, arguments


def make(name: str) -> None:
    recipe, stopped = write_recipe(name), Path("stopped") / name
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    with contextlib.suppress(KeyboardInterrupt):
        train.run(parser.parse_args([str(recipe)]), [StopAtStep4()])
    assert [path.name for path in stopped.glob("checkpoint-*")] == ["checkpoint-4"]
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(stopped, Path(kept) / "run")
        run("train", recipe)
        expected = {"metrics": json.loads((stopped / "metrics.json").read_text())}
        history = json.loads((stopped / "trainer_state.json").read_text())["log_history"]
        expected["losses"] = [entry["loss"] for entry in history if "loss" in entry]
        release = f"released/{name}/v0.1"
        run("evaluate", release, "--split", "validation", "--output", f"{kept}/measured")
        expected["evaluated"] = json.loads(Path(kept, "measured", "metrics.json").read_text())
        if name != "dual_encoder":
            run("predict", release, "--input", "rows.csv", "--output", f"{kept}/predicted.csv", "--limit", 6)
            with open(f"{kept}/predicted.csv", newline="", encoding="utf-8") as stream:
                expected["predicted"] = list(csv.DictReader(stream))
        task, arguments, call = SERVED[name]
        served = mmhf.pipeline(task, model=release)(*arguments, **call)
        expected["served"] = {"task": task, "arguments": arguments, "call": call, "answer": served}
        shutil.rmtree(stopped)
        shutil.copytree(Path(kept) / "run", stopped)
    Path("expected").mkdir(exist_ok=True)
    Path(f"expected/{name}.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ["MMHF_FEATURES"] = tempfile.mkdtemp()
    write_data()
    write_encoders()
    for family in RECIPES:
        make(family)
    for lock in Path().rglob(".lock"):
        lock.unlink()
