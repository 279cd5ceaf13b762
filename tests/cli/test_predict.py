"""`mmhf predict` as a user types it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.inference.conftest import save_tiny_model
from tests.inference.embedding_models import save_tiny_clip


def test_a_table_of_which_no_row_can_be_predicted_is_a_failure(tmp_path: Path, mmhf_cli: Callable) -> None:
    model, table = save_tiny_model(tmp_path / "model", ["fake", "true"]), tmp_path / "in.csv"
    table.write_text("image,text\n1.png,a frog\n2.png,a lamp\n")
    outcome = mmhf_cli("predict", model, "--input", table, "--output", tmp_path / "out.csv")
    assert outcome.code == 1
    line = outcome.err.splitlines()[-1]
    assert line.startswith("error: ") and "nothing could be made of any of 2 rows" in line and "missing" in line
    assert len(list(csv.DictReader((tmp_path / "out.csv").open()))) == 2, "with the reasons"
    model = save_tiny_clip(tmp_path / "clip")
    outcome = mmhf_cli("embed", model, "--input", table, "--images", "--output", tmp_path / "out.parquet")
    assert outcome.code == 1 and "nothing could be made" in outcome.err.splitlines()[-1]


def test_some_rows_are_enough_and_formulas_are_defused(tmp_path: Path, mmhf_cli: Callable, succeed: Callable) -> None:
    model, table = save_tiny_model(tmp_path / "model", ["fake", "true"]), tmp_path / "in.csv"
    Image.new("RGB", (20, 20), "red").save(tmp_path / "1.png")
    table.write_text("image,text\n1.png,=frog()\n2.png,a lamp\n")
    common = ["predict", model, "--input", table, "--output"]
    outcome = mmhf_cli(*common, tmp_path / "out.csv", "--defuse-formulas")
    assert outcome.code == 0 and "2 rows (" in outcome.err and "2 of them here" in outcome.err
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["text"] for row in rows] == ["'=frog()", "a lamp"]
    outcome = mmhf_cli(*common, tmp_path / "out.parquet", "--defuse-formulas")
    assert outcome.code == 2 and "defuse_formulas is for spreadsheets" in outcome.err


@pytest.mark.slow
def test_a_captioner_that_was_trained_on_a_table_predicts_one(tmp_path: Path, succeed: Callable) -> None:
    """Its recipe leaves the column of images to the source, and names that of the captions."""
    lines = ["image,caption"]
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,a drawing number {number}")
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    language = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {**language, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
    recipe = {
        "task": "image-captioning",
        "model": {
            "vision": {"backbone": "timm/test_resnet.r160_in1k", "pretrained": False, "features": "avg"},
            "language": {
                "backbone": "qwen3",
                "pretrained": False,
                "config": config,
                "tokenizer": {"vocab_size": 300},
            },
            "projector": {"prefix_length": 2, "hidden_dims": []},
            "freeze_language": False,
        },
        "data": {"source": "table", "path": str(tmp_path / "data.csv"), "image_size": 32, "find_duplicates": "never"},
        "generation": {"max_new_tokens": 4},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "report_to": "none",
        },  # fmt: skip
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    succeed("train", tmp_path / "recipe.yaml")
    succeed("predict", tmp_path / "run", "--input", tmp_path / "data.csv", "--output", tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["input_caption"] for row in rows] == [f"a drawing number {number}" for number in range(8)]
    assert not any(row["error"] for row in rows) and "caption" in rows[0]
