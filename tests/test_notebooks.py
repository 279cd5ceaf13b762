"""The notebooks in examples/ run, and their output is what a person wants to see."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


def text_of(output: Any) -> str:
    data = output.get("data", {})
    return output.get("text", "") or data.get("text/html", "") or data.get("text/plain", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = {
        re.search(r"mmhf\.(\w+)|$", cell.source)[1]: cell.outputs for cell in notebook.cells if cell.get("outputs")
    }
    trained = [text_of(output) for output in cells["train"]]
    assert sum("<progress" in text for text in trained) == 1, "one bar, which changes"
    assert sum(text.count("\n") for text in trained) < 60, "no line for each step"
    streams = [output.text for output in cells["train"] if output.output_type == "stream"]
    assert not any("\r" in text or "it/s" in text for text in streams), "no bars of a terminal"
    assert any("<table>" in text and "report" in text for text in trained), "the run shows itself"
    assert any("<pre>" in text_of(output) for output in cells["plan"]), "so does a plan"
