"""`mmhf embed --text` as a user types it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest


def test_the_texts_of_a_recipe_s_data_as_training_sees_them(
    tiny_recipe: Callable[..., Path], text_encoder_dir: Path, tmp_path: Path, mmhf_cli: Callable
) -> None:
    output = tmp_path / "t.parquet"
    outcome = mmhf_cli("embed", text_encoder_dir, "--text", "--input", tiny_recipe(), "--output", output)
    assert outcome.code == 0 and "60 rows (60 texts), 60 of them here" in outcome.err
    columns = pq.read_table(output).to_pydict()
    assert list(columns) == ["split", "row", "id", "text", "text_hash", "text_embedding", "error"]
    assert columns["split"].count("train") == 32 and columns["id"][:2] == ["train0", "train1"]
    assert b'"max_length": 16' in pq.read_schema(output).metadata[b"mmhf.text_encoder"], "the recipe's"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--pooling", "cls"], "--pooling belongs to text encoders: add --text"),
        (["--max-length", "8"], "--max-length belongs to text encoders: add --text"),
        (["--text", "--images"], "--text embeds texts alone"),
        (["--text", "--image-root", "."], "--text embeds texts alone"),
        (["--text", "--pooling", "best"], "pooling 'best': unknown; choose from cls, mean"),
        (["--text", "--batch-size", "0"], "batch_size=0"),
        (["--text"], "no such file"),
    ],
)
def test_what_is_refused(arguments: list[str], problem: str, tmp_path: Path, refusal: Callable[..., str]) -> None:
    if problem != "no such file":
        (tmp_path / "table.csv").write_text("text\na frog\n")
    given = ["minilm", "--input", tmp_path / "table.csv", "--output", tmp_path / "t.parquet"]
    assert problem in refusal("embed", *given, *arguments)


def test_a_recipe_says_which_column_has_the_texts(
    tiny_recipe: Callable[..., Path], tmp_path: Path, refusal: Callable[..., str]
) -> None:
    given = ["--input", tiny_recipe(), "--output", tmp_path / "t.parquet", "--column", "text=title"]
    assert "the recipe says which column" in refusal("embed", "minilm", "--text", *given)
