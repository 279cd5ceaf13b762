"""`mmhf find-lr` as a user meets it."""

import pytest
from PIL import Image

STAGES = [
    {"name": "head", "steps": 3, "train": ["fusion", "head"]},
    {"name": "all of it", "steps": 3, "train": "all", "learning_rate": {"vision": 1e-3, "text": 1e-3, "head": 5e-3}},
]


@pytest.fixture
def staged_recipe(tiny_recipe):
    return tiny_recipe({"training": {"max_steps": None}, "stages": STAGES, "early_stopping": {"metric": "loss"}})


@pytest.mark.slow
def test_prints_rates_and_leaves_a_picture_and_nothing_else(staged_recipe, succeed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    printed = succeed("find-lr", staged_recipe, "--stage", "all of it", "--from", "1e-5", "--steps", "25")
    assert printed.startswith("Stage all of it: ")
    assert "steepest descent" in printed and "a tenth of the minimum" in printed
    assert "for fusion; the other groups in the ratios of the recipe" in printed
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written == {tmp_path / "outputs" / "tiny" / "find_lr" / "all_of_it.png"}
    assert not (tmp_path / "run").exists()
    with Image.open(written.pop()) as image:
        assert image.format == "PNG" and image.width > 600


@pytest.mark.slow
def test_tries_the_first_stage_and_obeys_output(staged_recipe, succeed, tmp_path):
    printed = succeed("find-lr", staged_recipe, "--steps", "10", "--from", "1e-6", "--output", tmp_path / "pictures")
    assert printed.startswith("Stage head: ")
    assert "other groups" not in printed
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["head.png"]


@pytest.mark.slow
def test_a_recipe_without_stages_is_tried_whole(tiny_recipe, succeed, tmp_path):
    printed = succeed("find-lr", tiny_recipe(), "--steps", "10", "--output", tmp_path / "pictures")
    assert printed.startswith("Stage train: ")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--stage", "haed"), "--stage haed: the recipe has no such stage; did you mean head?"),
        (("--stage", "encoder"), "--stage encoder: the recipe has no such stage; it has head, all of it"),
        (("--from", "1", "--to", "0.1"), "--from 1 --to 0.1: rates must be above 0, the smaller one first"),
    ],
)
def test_refuses_in_one_line(staged_recipe, refusal, arguments, message):
    assert refusal("find-lr", staged_recipe, *arguments) == message
