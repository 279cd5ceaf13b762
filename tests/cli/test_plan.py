"""Every recipe of the repository parses and plans, with the Hub and without."""

from __future__ import annotations

import mmhf  # (first: it makes torchvision importable beside a CPU build of torch)

import shutil  # isort: skip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from small_data import make_rows, write_csv
from transformers import BertConfig, CLIPConfig, DistilBertConfig, Qwen3Config

from mmhf.hub import hub_errors
from mmhf.recipe import load_recipe
from mmhf.training.plan import GroupRow
from mmhf.verbs._plan_tables import fold_groups

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))

# The configuration files of the Hub repositories that recipes name, in their true shapes.
_CLIP = CLIPConfig(vision_config={"patch_size": 32, "projection_dim": 512}, projection_dim=512)
_QWEN3_0_6B = Qwen3Config(
    vocab_size=151_936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)
HUB_CONFIGS = {
    "distilbert/distilbert-base-uncased": DistilBertConfig().to_json_string(),
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract": BertConfig().to_json_string(),
    "openai/clip-vit-base-patch32": _CLIP.to_json_string(),
    "Qwen/Qwen3-0.6B-Base": _QWEN3_0_6B.to_json_string(),
}


class _Hub(BaseHTTPRequestHandler):
    """What `hf_hub_download` asks of the Hub for a single file."""

    requested: list[str] = []

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        repo, _, name = self.path.strip("/").partition("/resolve/main/")
        self.requested.append(f"{repo}:{name}")
        found = name == "config.json" and repo in HUB_CONFIGS
        body = HUB_CONFIGS[repo].encode() if found else b""
        self.send_response(200 if found or self.path == "/" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{abs(hash(body)):x}"')
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """An empty cache, a working directory without data, and the offline switch back where it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_errors.datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_errors, "_SWITCHED_OFF", False)


def _use_hub(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def hub(monkeypatch) -> Iterator[list[str]]:
    """A Hub on loopback; gives what was asked of it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _Hub.requested = []
    _use_hub(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    monkeypatch.setattr("mmhf.verbs.plan._WAIT_FOR_HUB", 60.0)  # a busy machine may be slow to answer
    yield _Hub.requested
    server.shutdown()
    server.server_close()


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT / "recipes")) for path in paths]


def test_there_are_recipes():
    assert {"quickstart/fusion.yaml", "fakeddit/v1.6.yaml", "fakeddit/v1.7.yaml", "fakeddit/v1.8.yaml"} <= set(
        names(RECIPES)
    )


@pytest.fixture
def planned_without_data(mmhf_cli) -> Callable[..., str]:
    """Plan a recipe whose data and parent may be absent, which ends with code 2; gives what it printed."""

    def run(*arguments: object) -> str:
        outcome = mmhf_cli("plan", *arguments)
        errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert outcome.code == (2 if errors else 0)
        assert all("no such f" in line for line in errors), errors
        return outcome.out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_recipe_plans(path, hub, planned_without_data):
    out = planned_without_data(path)
    assert "unknown: backbone" not in out and "problem: backbone" not in out
    stages = load_recipe(path).recipe.stages or ()
    for stage in stages:
        assert f"Stage {stage.name}:" in out
    assert "learning rate" in out and "GiB a device" in out
    assert {request.partition(":")[2] for request in hub} <= {"", "config.json"}, "a plan fetches configs alone"


@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_recipe_says_how_to_launch_it(path):
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    name = path.relative_to(ROOT / "recipes").with_suffix("")
    assert any(line.startswith(f"#   mmhf train {name}") for line in header)


def test_plan_without_network_names_what_is_not_known(monkeypatch, planned_without_data):
    """The first port that nobody listens on refuses at once; transformers alone would retry for 23 seconds."""
    _use_hub("http://127.0.0.1:9", monkeypatch)
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    out = planned_without_data(ROOT / "recipes" / "fakeddit" / "v1.7.yaml")
    assert waits == [] and huggingface_hub.constants.HF_HUB_OFFLINE
    assert "unknown: backbone distilbert/distilbert-base-uncased" in out
    assert "problem: data.path: no such folder" in out and "problem: init_from: releases/fakeddit@v1.6: no" in out
    assert "│ finetune" in out and "5 epochs" in out


def test_plan_does_not_wait_for_a_silent_network(monkeypatch, planned_without_data):
    """A server that takes connections and never answers, as behind a firewall: it is asked once."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)  # it listens, but nobody serves
    _use_hub(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    monkeypatch.setattr("mmhf.verbs.plan._WAIT_FOR_HUB", 0.5)
    out = planned_without_data(ROOT / "recipes" / "fakeddit" / "v1.6.yaml")
    assert "unknown: backbone distilbert" in out
    server.socket.setblocking(False)
    server.socket.accept()[0].close()
    with pytest.raises(BlockingIOError):
        server.socket.accept()
    server.server_close()


@pytest.mark.slow
def test_plan_shows_where_values_come_from(hub, planned_without_data):
    out = planned_without_data(ROOT / "recipes" / "fakeddit" / "v1.7.yaml", "data.limit=7")
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert "override" in lines["data.limit"] and "7" in lines["data.limit"]
    assert "v1.7.yaml" in lines["model.fusion.dropout"] and "v1.6.yaml" in lines["model.embedding_dim"]
    assert "model.fusion.activation" not in lines
    out = planned_without_data(ROOT / "recipes" / "fakeddit" / "v1.7.yaml", "--all")
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert "default" in lines["model.fusion.activation"]


def test_plan_counts_steps_and_parameters(tiny_recipe, two_stages, succeed):
    out = succeed("plan", tiny_recipe(two_stages))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    head = next(row for row in rows if row[0] == "head" and len(row) == 4)
    assert head[1:] == ["18", "18", "1.0e-02"]
    frozen = next(row for row in rows if row[0] == "vision.stem" and len(row) == 4)
    assert frozen[2:] == ["0", "frozen"]
    assert "Stage head: 3 steps" in out and "Stage all: 3 steps" in out
    assert "channels last" in out and "MMHF_CHANNELS_LAST=off" in out
    assert "CPU threads" in out and "memory allocator" in out and "JPEG decoder" in out


@pytest.mark.slow
def test_what_only_a_silent_hub_knows_is_no_error_of_the_recipe(tiny_recipe, succeed, broken, monkeypatch):
    """Another time the Hub may answer; where it is switched off, training is certain to be refused."""
    _use_hub("http://127.0.0.1:9", monkeypatch)
    for override, says in {
        "model.vision.backbone=org/resnet": "backbone org/resnet: no config found",
        "init_from=org/parent@v1.0": "init_from: org/parent@v1.0: no such folder, and not to be had from the Hub",
    }.items():
        monkeypatch.setattr(hub_errors, "_SWITCHED_OFF", False)
        assert f"unknown: {says}" in succeed("plan", tiny_recipe(), override)
        monkeypatch.setattr(hub_errors, "_SWITCHED_OFF", True)
        assert says in broken(tiny_recipe(), override)


def test_stages_are_planned_without_the_data(tiny_recipe, two_stages, mmhf_cli):
    outcome = mmhf_cli("plan", tiny_recipe(two_stages), "data.path=elsewhere")
    assert outcome.code == 2 and "Stage head:" in outcome.out and "GiB a device" in outcome.out
    assert outcome.out.startswith("problem: data.path: no such folder")


def test_a_trained_recipe_is_still_a_good_one(trained, succeed, broken):
    recipe = trained / "tiny.yaml"
    assert "note: " in (out := succeed("plan", recipe, "release=null")) and "holds a finished run" in out
    assert "version v1.6 exists" in broken(recipe)


def test_plan_writes_nothing(tiny_recipe, succeed, tmp_path):
    recipe = tiny_recipe()
    before = sorted(tmp_path.rglob("*"))
    succeed("plan", recipe)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def broken(mmhf_cli) -> Callable[..., str]:
    """Plan what must be refused; gives the one line of the refusal, which the plan itself begins with."""

    def run(*arguments: object) -> str:
        outcome = mmhf_cli("plan", *arguments)
        errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert outcome.code == 2 and len(errors) == 1, outcome.err
        line = errors[0].removeprefix("error: ")
        assert outcome.out.startswith(f"problem: {line[:40]}")
        return line

    return run


def labelled_table(
    folder: Path, root: str | None = "photos", label: str = "kind", rows: int = 40
) -> dict[str, object]:
    table = write_csv(folder / "data.csv", make_rows(folder, rows))
    columns = {"image": "photo", "label": label, "text": "title"}
    images = {} if root is None else {"image_root": str(folder / root)}
    return {"data": {"source": "table", "path": str(table), "columns": columns, **images}}


@pytest.mark.slow
def test_plan_finds_the_root_of_the_images(tiny_recipe, broken, succeed, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for root in (None, "elsewhere"):
        line = broken(tiny_recipe(labelled_table(tmp_path, root)))
        assert "40 of 40 images tried are missing" in line and f"set data.image_root={tmp_path / 'photos'}" in line
    recipe = tiny_recipe(labelled_table(tmp_path))
    succeed("plan", recipe)
    for image in (tmp_path / "photos").glob("00*"):
        image.unlink()
    assert "10 of 40 images tried are missing" in succeed("plan", recipe)
    recipe = tiny_recipe(labelled_table(tmp_path, None))
    shutil.rmtree(tmp_path / "photos")
    assert "put them there" in broken(recipe)


def test_plan_knows_labels_that_are_none(tiny_recipe, broken, tmp_path):
    recipe = tiny_recipe(labelled_table(tmp_path, label="seen"))
    line = broken(recipe)
    assert "seen has 28 classes for 32 training rows" in line and "data.columns.label" in line


def test_plan_knows_a_class_without_training_rows(tiny_recipe, broken, tmp_path):
    rows = make_rows(tmp_path)
    for number, row in enumerate(rows):
        row["split"] = ("train", "test")[number % 4 == 0]
    rows[0]["kind"] = "whale"
    write_csv(tmp_path / "data.csv", rows)
    columns = {"image": "photo", "label": "kind", "text": "title"}
    data = {"source": "table", "path": str(tmp_path / "data.csv"), "image_root": str(tmp_path / "photos")}
    line = broken(tiny_recipe({"data": {**data, "split_column": "split", "columns": columns}}))
    assert "whale has no training row" in line and "min_samples_per_label" in line


def test_plan_knows_batches_larger_than_the_data(tiny_recipe, broken):
    line = broken(tiny_recipe(), "training.per_device_train_batch_size=64")
    assert "more than the 32 training rows; set it to 8" in line


@pytest.mark.slow
def test_plan_estimates_time(tiny_recipe, two_stages, succeed):
    out = succeed("plan", tiny_recipe(two_stages), "--time")
    assert out.count("time: about") == 2 and "s a step" in out


def test_a_plan_fits_a_terminal(tiny_recipe, two_stages, succeed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = succeed("plan", tiny_recipe(two_stages))
    assert max(len(line) for line in out.splitlines() if line[:1] in "│┃┏└├┡") <= 80


def test_groups_that_train_alike_are_one_line():
    rows = [GroupRow("stem", 1, None), *(GroupRow(f"layers.{n}", 10, None if n < 4 else 1e-3) for n in range(8))]
    folded = fold_groups([*rows, GroupRow("head", 5, 1e-3)])
    assert [(row.name, row.num_parameters) for row in folded] == [
        ("stem", 1), ("layers.0-3", 40), ("layers.4-7", 40), ("head", 5),
    ]  # fmt: skip


def test_a_plan_in_python(tiny_recipe, tmp_path):
    planned = mmhf.plan(tiny_recipe())
    assert planned.run["rows"].startswith("train 32") and [stage.name for stage in planned.stages] == ["train"]
    assert "Stage train" in str(planned) and "<pre>" in planned._repr_html_()
    assert (
        "64 is more than the 32 training rows; set it to 8"
        in mmhf.plan(tiny_recipe(), ["training.per_device_train_batch_size=64"]).problems[0]
    )
