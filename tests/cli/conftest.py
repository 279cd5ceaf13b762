"""The command line as a user meets it: exit code, standard output, standard error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmhf.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def mmhf_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `mmhf VERB …` in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def succeed(mmhf_cli: Callable[..., Outcome]) -> Callable[..., str]:
    """Run `mmhf VERB …`, which must work; gives what it printed."""

    def run(*arguments: object) -> str:
        outcome = mmhf_cli(*arguments)
        assert outcome.code == 0, outcome.err
        return outcome.out

    return run


@pytest.fixture
def refusal(mmhf_cli: Callable[..., Outcome]) -> Callable[..., str]:
    """Run `mmhf VERB …`, which must end with code 2 and one line on standard error; gives that line."""

    def run(*arguments: object) -> str:
        outcome = mmhf_cli(*arguments)
        assert outcome.code == 2
        lines = [line for line in outcome.err.splitlines() if line]
        assert len(lines) == 1 and lines[0].startswith("error: "), outcome.err
        return lines[0].removeprefix("error: ")

    return run


@pytest.fixture(scope="session")
def trained(write_tiny_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, `run`, and its release, `releases/v1.6`; copy it to change it."""
    folder = tmp_path_factory.mktemp("trained")
    changes = {
        "training": {"output_dir": str(folder / "run")},
        "release": {"repo": str(folder / "releases"), "version": "1.6"},
    }
    assert main(["train", str(write_tiny_recipe(folder / "tiny.yaml", changes))]) == 0
    return folder
