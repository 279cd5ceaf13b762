from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmhf.errors import InputError
from mmhf.recipe import ResolvedRecipe, load_recipe


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a file into an otherwise empty working directory; gives its relative path."""
    monkeypatch.chdir(tmp_path)

    def _write(text: str, name: str = "r.yaml") -> str:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    return _write


@pytest.fixture
def load(write: Callable[..., str]) -> Callable[..., ResolvedRecipe]:
    """Load a recipe of this text, with overrides."""
    return lambda text, *overrides: load_recipe(write(text), overrides)


@pytest.fixture
def problems(write: Callable[..., str]) -> Callable[..., list[str]]:
    """The lines that loading a recipe of this text complains with."""

    def _problems(text: str, *overrides: str) -> list[str]:
        with pytest.raises(InputError) as raised:
            load_recipe(write(text), overrides)
        return str(raised.value).split("\n")

    return _problems
