"""What strangers type: each wrong step is answered by one line with a way out, and exit code 2."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_data import make_rows, picture, write_csv

CLASSIFIER = {
    "task": "image-classification",
    "model": {"vision": {"backbone": "timm/test_efficientnet", "pretrained": False}},
    "data": {
        "source": "table",
        "path": "data.csv",
        "image_root": "photos",
        "columns": {"image": "photo", "label": "kind"},
    },
    "training": {"max_steps": 1, "output_dir": "run", "per_device_train_batch_size": 8},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, a recipe and a few things that are no data, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    rows = make_rows(tmp_path)
    write_csv(tmp_path / "data.csv", rows)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(CLASSIFIER, sort_keys=False))
    (tmp_path / "broken.yaml").write_text("task: [image-classification\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "tabs.yaml").write_text("task: image-classification\n\tdata: {}\n")
    (tmp_path / "twice.yaml").write_text("task: image-classification\ntask: contrastive\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("photo,kind\n")
    (tmp_path / "space.yaml").write_text("metric: f1_macro\nspace: {training.weight_decay: [0.0, 0.1]}\n")
    (tmp_path / "notes.docx").write_text("x")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").write_bytes(picture(1))
    (tmp_path / "void").mkdir()
    write_csv(tmp_path / "two.csv", [{**row, "kind": f"k{n}"} for n, row in enumerate(rows)])
    return tmp_path


WRONG = {
    # verbs and options
    "deploy": (["deploy"], "did you mean serve?"),
    "serve nothing": (["serve"], "MODEL"),
    "a verb mistyped": (["trian", "recipe.yaml"], "did you mean train?"),
    "test": (["test", "run"], "did you mean evaluate?"),
    "no recipe": (["train"], "mmhf train --help"),
    "an unknown option": (["train", "recipe.yaml", "--epochs", "3"], "mmhf train --help"),
    "plan without anything": (["plan"], "needs a recipe"),
    "evaluate without anything": (["evaluate"], "name what to measure"),
    "a number that is none": (
        ["predict", "m", "--input", "data.csv", "--output", "o.csv", "--limit", "ten"],
        "--limit",
    ),
    # recipes
    "a recipe that is not there": (["train", "recipes.yaml"], "did you mean recipe.yaml?"),
    "a recipe's name mistyped": (["plan", "quickstart/fussion"], "did you mean quickstart/fusion?"),
    "a folder": (["train", "photos"], "is a folder, not a recipe file"),
    "no YAML": (["train", "broken.yaml"], "broken.yaml:"),
    "an empty recipe": (["train", "empty.yaml"], "needs at least `task` and `data`"),
    "tabs": (["train", "tabs.yaml"], "indent with spaces"),
    "a key twice": (["train", "twice.yaml"], "'task' appears twice, first at twice.yaml:1"),
    "a table as recipe": (["train", "data.csv"], "data.csv"),
    # keys and values
    "a key mistyped": (["train", "recipe.yaml", "training.learnin_rate=1"], "did you mean learning_rate?"),
    "epochs": (["train", "recipe.yaml", "training.epochs=3"], "write `num_train_epochs`"),
    "batch size": (["train", "recipe.yaml", "training.batch_size=3"], "write `per_device_train_batch_size`"),
    "lr": (["train", "recipe.yaml", "training.lr=3"], "write `learning_rate`"),
    "a key without its section": (
        ["train", "recipe.yaml", "learning_rate=3"],
        "training.learning_rate or",
    ),
    "a number as text": (["train", "recipe.yaml", "training.learning_rate=fast"], "must be a number"),
    "yes": (["train", "recipe.yaml", "training.bf16=yes"], "did you mean true?"),
    "a negative batch": (["train", "recipe.yaml", "training.per_device_train_batch_size=-1"], "greater than 0"),
    "images of no size": (["train", "recipe.yaml", "data.image_size=0"], "greater than 0"),
    "no stages": (["train", "recipe.yaml", "stages=[]"], "at least 1 item"),
    "pooling: average": (["train", "recipe.yaml", "model.vision.pooling=average"], "did you mean avg?"),
    "optim: adam": (["train", "recipe.yaml", "training.optim=adam"], "did you mean adamw_torch"),
    "no override": (["train", "recipe.yaml", "epochs"], "write KEY=VALUE"),
    "source: csv": (["plan", "recipe.yaml", "data.source=csv"], "did you mean table?"),
    "source: imagefolder": (["plan", "recipe.yaml", "data.source=imagefolder"], "did you mean image_folder?"),
    "task: classification": (["plan", "recipe.yaml", "task=classification"], "did you mean image-classification or"),
    "task: clip": (["plan", "recipe.yaml", "task=clip"], "did you mean contrastive?"),
    "model.text without text": (["plan", "recipe.yaml", "model.text.backbone=x"], "this task reads no text"),
    "removed from transformers": (["train", "recipe.yaml", "training.evaluation_strategy=epoch"], "`eval_strategy`"),
    "a metric that is not measured": (
        ["plan", "recipe.yaml", "training.metric_for_best_model=f1"],
        "f1_macro",
    ),
    "a stage without such groups": (
        ["plan", "recipe.yaml", "training.max_steps=null", "stages=[{name: a, epochs: 1, train: [hed]}]"],
        "did you mean head",
    ),
    # backbones
    "a timm model mistyped": (
        ["plan", "recipe.yaml", "model.vision.backbone=timm/resnet5O"],
        "did you mean timm/resnet50",
    ),
    "a pypi name mistyped": (
        ["plan", "recipe.yaml", "model.vision.backbone=pypi/efficientnet"],
        "pypi/efficientnet-lite0",
    ),
    "timm's name alone": (["plan", "recipe.yaml", "model.vision.backbone=resnet50"], "did you mean timm/resnet50 or"),
    "PyPI's name alone": (
        ["plan", "recipe.yaml", "model.vision.backbone=efficientnet-lite0"],
        "did you mean pypi/efficientnet-lite0?",
    ),
    "a folder without a backbone": (["plan", "recipe.yaml", "model.vision.backbone=./bert"], "no such folder"),
    "a parent that is not there": (["plan", "recipe.yaml", "init_from=nothing@v1"], "init_from: nothing@v1: no such"),
    "a parent without that version": (["plan", "recipe.yaml", "init_from=void@v1"], "no version v1"),
    # data
    "a table that is not there": (["train", "recipe.yaml", "data.path=dta.csv"], "no such file"),
    "a table that plan does not find": (["plan", "recipe.yaml", "data.path=dta.csv"], "dta.csv: no such file"),
    "images of three pixels": (["plan", "recipe.yaml", "data.image_size=3"], "nothing can be seen"),
    "images of a strip": (["plan", "recipe.yaml", "data.image_size=[224, 2]"], "nothing can be seen"),
    "an unknown kind of table": (["plan", "recipe.yaml", "data.path=notes.docx"], "expected a name that ends in"),
    "a column mistyped": (["plan", "recipe.yaml", "data.columns.label=knd"], "did you mean kind?"),
    "the wrong root": (["plan", "recipe.yaml", "data.image_root=flat"], "set data.image_root=photos"),
    "a root that is not there": (["plan", "recipe.yaml", "data.image_root=fotos"], "no such folder"),
    "labels that are ids": (["plan", "recipe.yaml", "data.columns.label=id"], "data.columns.label names"),
    "a number as label": (["plan", "recipe.yaml", "data.columns.label=price"], "data.columns.label names"),
    "a label a row": (["plan", "recipe.yaml", "data.path=two.csv"], "is no class"),
    "a table of a header": (["plan", "recipe.yaml", "data.path=header.csv"], "header.csv"),
    "an empty table": (["plan", "recipe.yaml", "data.path=empty.csv"], "does not begin with a header"),
    "a batch larger than the data": (
        ["plan", "recipe.yaml", "training.per_device_train_batch_size=512"],
        "set it to 8",
    ),
    "a column to split by that is none": (
        ["plan", "recipe.yaml", "data.split.group_by=patient"],
        "no column 'patient'",
    ),
    # init
    "init of nothing": (["init", "dta.csv", "-o", "new.yaml"], "did you mean data.csv?"),
    "init of a document": (["init", "notes.docx", "-o", "new.yaml"], "not a table"),
    "init of an empty folder": (["init", "void", "-o", "new.yaml"], "no images in it"),
    "init of images without classes": (["init", "flat", "-o", "new.yaml"], "make a folder for each class"),
    "init for another task": (
        ["init", "photos", "--task", "contrastive", "-o", "new.yaml"],
        "make a folder for each class",
    ),
    "init with a label mistyped": (["init", "data.csv", "--label", "knd", "-o", "new.yaml"], "did you mean kind?"),
    "init for a task that is none": (
        ["init", "data.csv", "--task", "classification", "-o", "new.yaml"],
        "choose from 'image-text-classification'",
    ),
    "init of a URL": (["init", "https://example.org/data.csv", "-o", "new.yaml"], "docs/cloud.md has recipes"),
    "init of a recipe mistyped": (["init", "quickstart/fussion"], "did you mean quickstart/fusion?"),
    "init over a recipe": (["init", "data.csv"], "name another file with -o"),
    # models and outputs
    "a run that is not there": (["evaluate", "outputs/nothing"], "outputs/nothing"),
    "a version that is not there": (
        ["predict", "releases/x@v1.8", "--input", "data.csv", "--output", "o.csv"],
        "releases/x",
    ),
    "a folder without a model": (["evaluate", "photos"], "photos"),
    "an input that is not there": (
        ["predict", "photos", "--input", "dat.csv", "--output", "o.csv"],
        "did you mean data.csv?",
    ),
    "an index that is not there": (["search", "photos.parquet", "--text", "x"], "no such file"),
    "a release of nothing": (["release", "runs"], "did you mean run"),
    "a sweep without its space": (["sweep", "recipe.yaml", "spaces.yaml"], "did you mean space.yaml?"),
    "a sweep by a wrong metric": (["sweep", "recipe.yaml", "space.yaml", "task=clip"], "did you mean contrastive?"),
    "a run where a file is": (["train", "recipe.yaml", "training.output_dir=data.csv"], "data.csv"),
    "a planned run where a file is": (
        ["plan", "recipe.yaml", "training.output_dir=data.csv"],
        "data.csv is a file; choose a folder",
    ),
    "a planned run among other files": (
        ["plan", "recipe.yaml", "training.output_dir=photos"],
        "photos holds files but no run",
    ),
    "a checkpoint that is none": (
        ["plan", "recipe.yaml", "training.resume_from_checkpoint=photos"],
        "photos is no whole checkpoint",
    ),
    "a release where a file is": (
        ["plan", "recipe.yaml", "release={repo: data.csv, version: '1.0'}"],
        "data.csv: is a file",
    ),
}


@pytest.mark.parametrize("step", list(WRONG))
def test_a_wrong_step(step: str, folder: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, way_out = WRONG[step]
    if step == "a release of nothing":
        (folder / "run").mkdir()
    monkeypatch.setattr("mmhf.hub.hub_errors._answers", lambda seconds: False)
    before = sorted(folder.rglob("*"))
    line = refusal(*arguments)
    assert way_out in line, line
    assert sorted(folder.rglob("*")) == before, "something was written"


def test_there_are_forty() -> None:
    assert len(WRONG) >= 40


@pytest.mark.parametrize("verb", ["train", "prepare", "cache", "find-lr", "sweep", "export"])
def test_only_what_is_required_is_asked_for(verb: str, refusal: Callable[..., str]) -> None:
    line = refusal(verb)
    assert "the following arguments are required: " in line and "overrides" not in line


@pytest.mark.parametrize(("verb", "module"), [("sweep", "optuna"), ("demo", "gradio")])
def test_an_extra_that_is_missing(verb, module, folder, refusal, monkeypatch):
    from mmhf.cli import _checks

    real = _checks.find_spec
    monkeypatch.setattr(_checks, "find_spec", lambda name: None if name == module else real(name))
    arguments: list[Any] = {"sweep": ["recipe.yaml", "space.yaml"], "demo": ["run"]}[verb]
    assert f"{module} is not installed: pip install 'mmhf[{verb}]'" in refusal(verb, *arguments)


def test_a_port_in_use(folder, refusal, trained, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = refusal("demo", trained / "run", "--port", taken.getsockname()[1])
    assert "port" in line
