"""Nothing heavy is loaded before it is needed."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmhf.cli import main

SCRIPTS = Path(__file__).parents[2] / "scripts"
HEAVY = ["torch", "transformers", "datasets", "pandas", "sklearn", "matplotlib", "timm", "pydantic", "rich", "numpy"]


@pytest.fixture
def loaded_after(tmp_path):
    """A function that runs statements in a program of their own, in an empty folder: which heavy modules it loads."""

    def run(statements: str) -> set[str]:
        script = (
            f"import json, sys\n{statements}\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stdout.splitlines()[-1]))

    return run


@pytest.mark.parametrize(
    "statements",
    [
        "import mmhf",
        "import mmhf.cli",
        "from mmhf.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
        "from mmhf.cli import main\ntry:\n    main(['--version'])\nexcept SystemExit:\n    pass",
        "from mmhf.cli import main\nassert main(['trian']) == 2",
    ],
)
def test_loads_nothing_heavy(statements, loaded_after):
    assert loaded_after(statements) == set()


MISTAKES = [
    ["train", "nowhere.yaml"],
    ["train", "quickstart/fusion", "training.learnin_rate=1"],
    ["plan", "quickstart/fusoin"],
    ["sweep", "quickstart/fusion", "nowhere.yaml"],
    ["predict", "model", "--input", "nowhere.csv", "--output", "out.csv"],
    ["search", "nowhere.parquet", "--text", "x"],
    ["release", "nowhere"],
    ["init"],
]


def test_helps_and_mistakes_are_answered_at_once(loaded_after):
    """The count of modules stands for the time, which depends on the machine: 0.5 s of one core."""
    statements = f"""
import sys
from mmhf.cli import main
from mmhf.cli.arguments import VERBS
for verb in VERBS:
    try:
        main([verb, "--help"])
    except SystemExit as end:
        assert end.code == 0
assert len(sys.modules) < 200, len(sys.modules)
for mistake in {MISTAKES}:
    assert main(mistake) == 2, mistake
assert main(["init", "--list"]) == 0
assert len(sys.modules) < 330, len(sys.modules)
"""
    assert loaded_after(statements) <= {"pydantic"}


def test_garbage_is_not_searched_for_while_libraries_are_loaded(monkeypatch):
    seen = []
    verb = SimpleNamespace(run=lambda options: seen.append((gc.isenabled(), gc.get_freeze_count() > frozen)))
    frozen = gc.get_freeze_count()
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr("mmhf.cli.importlib.import_module", lambda name: seen.append(gc.isenabled()) or verb)
    try:
        assert main(["lineage", "anything"]) == 0
    finally:
        gc.unfreeze()
    assert seen == [False, (True, True)]


def test_scripts_do_not_hide_libraries_of_their_names(monkeypatch):
    """`python scripts/train.py` puts `scripts/` first on the path, and with it `evaluate.py`."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / "train.py")])
    monkeypatch.syspath_prepend(SCRIPTS)
    assert PathFinder.find_spec("evaluate").origin == str(SCRIPTS / "evaluate.py")
    with pytest.raises(SystemExit):
        main(["find-lr", "--help"])
    assert Path(PathFinder.find_spec("evaluate").origin).name == "__init__.py"


USED_LATER = ["sklearn", "matplotlib", "nltk", "rouge_score", "evaluate", "wandb", "aiohttp"]


@pytest.mark.slow
def test_a_plan_loads_nothing_that_only_training_or_a_report_uses(loaded_after):
    """What is beyond the import of torch and transformers.Trainer is counted in modules: 2 s of one core."""
    statements = f"""
import torch
from transformers import Trainer
before = len(sys.modules)
from mmhf.cli import main
assert main(["plan", "quickstart/fusion"]) == 0
assert len(sys.modules) - before < 800, len(sys.modules) - before
early = [name for name in {USED_LATER} if name in sys.modules]
assert not early, early
import wandb
assert wandb.__version__
import mmhf.verbs.train
"""
    assert "timm" in loaded_after(statements)


@pytest.mark.slow
def test_torchvision_works_after_importing_mmhf(loaded_after):
    assert "torch" in loaded_after("import mmhf\nimport torchvision, timm\nfrom transformers import Trainer")
