"""What `run.py` tells a rival's script, and how the script answers; nothing but Python's own library."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

BEGIN, END = "# user: begin", "# user: end"
"""Around what a user has to write. That reads the job where a user would write paths, sizes and seeds."""


class Job(NamedTuple):
    """One run of one script.

    Attributes:
        rows (`str`): A CSV file: `split`, `image` (a path), `text`, `label` (a name). A row is a pair where there are
            texts.
        lite0 (`str`): A folder with EfficientNet-Lite0 as timm and transformers publish models.
        minilm (`str`): The same with MiniLM and its tokenizer.
        image_size (`int`): Side of the square, in pixels.
        max_length (`int`): Of a text, in tokens.
        batch_size (`int`): As in mmhf's recipe.
        epochs (`int`): In all: as many as mmhf's recipe, unless that trains a head alone.
        head_epochs (`int`): Those of them with frozen encoders.
        seed (`int`): Of everything that is drawn.
        variant (`str`): Which of two ways, where a script has two.
        output (`str`): A folder for all that the script writes.
    """

    rows: str
    lite0: str
    minilm: str
    image_size: int
    max_length: int
    batch_size: int
    epochs: int
    head_epochs: int
    seed: int
    variant: str
    output: str

    def answer(self, labels: Iterable[str]) -> None:
        """Write the label of each row of the test split, in the order of the rows."""
        Path(self.output, "labels.json").write_text(json.dumps([str(label) for label in labels]), encoding="utf-8")

    def answer_embeddings(self, **embeddings: Any) -> None:
        """Write `images` and `texts`, (N, D) each: the embeddings of each row of the test split."""
        import numpy as np

        np.savez(Path(self.output, "embeddings.npz"), **embeddings)


def read_job() -> Job:
    """The job whose file is named on the command line."""
    values: Mapping[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return Job(**values)
