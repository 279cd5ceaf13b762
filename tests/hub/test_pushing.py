"""Pushing to the Hub with the real client, against a server on this machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import TOKEN, LoopbackHub
from safetensors.numpy import save_file

from mmhf.errors import InputError
from mmhf.hub.lineage import check_release_is_possible, recipe_settings, release_run, release_settings
from mmhf.hub.manifest import ReleaseNotes
from mmhf.hub.pushing import PushedRelease, push_release
from mmhf.hub.releases import resolve_model

REPO = "org/fakeddit"


def push(run_dir: Path, version: str, **settings: object) -> PushedRelease:
    notes = ReleaseNotes(parent=settings.pop("parent", None))
    values = {"repo": REPO, "version": version, "push": True, **settings}
    return push_release(run_dir, release_settings(values), notes=notes)


def assert_holds(hub: LoopbackHub, revision: str, run_dir: Path, repo: str = REPO) -> None:
    files = hub.files(repo, revision)
    assert files["model.safetensors"] == (run_dir / "model.safetensors").read_bytes()
    assert files["metrics.json"] == (run_dir / "metrics.json").read_bytes()
    release = json.loads(files["release.json"])
    assert set(release["files"]) == files.keys() - {".gitattributes", "release.json"}


@pytest.mark.slow
def test_three_versions_with_lineage(hub: LoopbackHub, make_run: Callable[..., Path]):
    parent, runs = None, {}
    for version, accuracy in (("1.6", 0.5), ("1.7", 0.9), ("1.8", 0.8)):
        runs[version] = make_run(version, seed=int(version[-1]), metrics={"test_accuracy": accuracy})
        pushed = push(runs[version], version, parent=parent, best_metric="test_accuracy")
        assert pushed.commit == hub.repo(REPO).tags[f"v{version}"]
        resolved = resolve_model(f"{REPO}@{version}")
        assert (resolved.revision, resolved.commit) == (f"v{version}", pushed.commit)
        parent = resolved.reference
    repo = hub.repo(REPO)
    assert repo.tags.keys() == {"v1.6", "v1.7", "v1.8", "best"}
    assert repo.branches.keys() == {"main"}
    for version, run_dir in runs.items():
        assert_holds(hub, f"v{version}", run_dir)
    assert hub.files(REPO, "main") == hub.files(REPO, "v1.8")
    assert repo.tags["best"] == repo.tags["v1.7"]
    assert [commit.message for commit in repo.history("main")] == [
        "Release v1.8",
        "Release v1.7",
        "Release v1.6",
        "initial commit",
    ]
    walked = [json.loads(hub.files(REPO, "v1.8")["release.json"])]
    while (ancestor := walked[-1]["parent"]) is not None:
        assert ancestor["repo"] == REPO and ancestor["commit"] == repo.tags[ancestor["revision"]]
        walked.append(json.loads(hub.files(REPO, ancestor["revision"])["release.json"]))
    assert [release["version"] for release in walked] == ["v1.8", "v1.7", "v1.6"]
    assert resolve_model(REPO).revision == "v1.8"


@pytest.mark.parametrize("again", ["1.8", "v1.8", "1.8.0"])
def test_a_version_is_immutable(hub: LoopbackHub, make_run: Callable[..., Path], again: str):
    push(make_run("first"), "1.8")
    tags, branches = dict(hub.repo(REPO).tags), dict(hub.repo(REPO).branches)
    for run_dir in (make_run("other", seed=5), make_run("same")):
        with pytest.raises(InputError, match=r"org/fakeddit: version v1\.8 exists"):
            push(run_dir, again)
    settings = release_settings({"repo": REPO, "version": again, "push": True})
    with pytest.raises(InputError, match=r"version v1\.8 exists"):
        check_release_is_possible(settings)
    check_release_is_possible(settings.model_copy(update={"version": "1.9"}))
    check_release_is_possible(settings.model_copy(update={"repo": "org/absent"}))
    assert (hub.repo(REPO).tags, hub.repo(REPO).branches) == (tags, branches)


def test_what_the_hub_has_is_not_sent_again(hub: LoopbackHub, make_run: Callable[..., Path]):
    push(make_run("first"), "1.0")
    sent = hub.large_bytes_sent()
    assert sent == (make_run("same") / "model.safetensors").stat().st_size
    hub.requests.clear()
    push(make_run("again", metrics={"test_accuracy": 0.9}), "1.1")
    assert hub.large_bytes_sent() == 0
    commits = [request for request in hub.requests if "/commit/releasing-v1.1" in request.line]
    lines = [json.loads(line) for line in commits[0].body.splitlines()]
    changed = {line["value"]["path"] for line in lines if line["key"] in ("file", "lfsFile")}
    assert changed == {"metrics.json", "README.md", "release.json"}


def test_files_that_a_version_no_longer_has_are_gone(hub: LoopbackHub, make_run: Callable[..., Path]):
    first = make_run("first")
    (first / "chat_template.jinja").write_text("{{ text }}")
    push(first, "1.0")
    push(make_run("second", seed=1), "1.1")
    assert "chat_template.jinja" in hub.files(REPO, "v1.0")
    for revision in ("v1.1", "main"):
        assert "chat_template.jinja" not in hub.files(REPO, revision)
        assert ".gitattributes" in hub.files(REPO, revision)


@pytest.mark.slow
def test_main_follows_the_newest_number_and_channels_go_their_own_way(hub: LoopbackHub, make_run):
    runs = {version: make_run(version, seed=seed) for seed, version in enumerate(("1.8", "1.7.1", "2.0-rc.1", "1.9"))}
    push(runs["1.8"], "1.8")
    push(runs["1.7.1"], "1.7.1")
    push(runs["2.0-rc.1"], "2.0-rc.1", channel="experimental")
    assert hub.files(REPO, "main") == hub.files(REPO, "v1.8")
    assert hub.files(REPO, "experimental") == hub.files(REPO, "v2.0-rc.1")
    push(runs["1.9"], "1.9")
    assert hub.files(REPO, "main") == hub.files(REPO, "v1.9")
    assert hub.repo(REPO).branches.keys() == {"main", "experimental"}
    assert resolve_model(f"{REPO}@experimental").revision == "v2.0-rc.1"


def test_best_can_be_the_least(hub: LoopbackHub, make_run: Callable[..., Path]):
    for version, loss in (("1.0", 0.7), ("1.1", 0.3), ("1.2", 0.4)):
        push(make_run(version, metrics={"test_loss": loss}), version, best_metric="test_loss")
    assert hub.repo(REPO).tags["best"] == hub.repo(REPO).tags["v1.1"]
    with pytest.raises(InputError, match="no number 'test_los'.*test_loss"):
        push(make_run("1.3", metrics={"test_loss": 0.1}), "1.3", best_metric="test_los")


def test_private_repositories_need_a_login_to_be_read(hub: LoopbackHub, run_dir: Path, monkeypatch):
    push(run_dir, "1.0", repo="writer/secret", private=True)
    assert hub.repo("writer/secret").private
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(InputError, match=r"writer/secret@v1\.0.*hf auth login"):
        resolve_model("writer/secret@v1.0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve_model("writer/secret@v1.0").revision == "v1.0"


def test_a_large_file_goes_in_parts(hub: LoopbackHub, run_dir: Path):
    hub.multipart_over = 1000
    save_file({"w": np.random.default_rng(0).random(400_000)}, run_dir / "model.safetensors")
    push(run_dir, "1.0")
    assert sum("PUT /lfs/" in request.line for request in hub.requests) == 4
    assert_holds(hub, "v1.0", run_dir)


def test_a_recipe_can_say_all_of_it(hub: LoopbackHub, make_run: Callable[..., Path]):
    recipe = (
        "task: image-classification\n"
        f"release: {{repo: {REPO}, version: '1.0', push: true, card: {{license: mit, limits: Drawings}}}}\n"
    )
    run_dir = make_run("run", recipe=recipe)
    said = release_run(run_dir, release_settings(recipe_settings(run_dir)))
    assert said.startswith(f"{REPO}@v1.0 ({hub.endpoint}/")
    card = hub.files(REPO, "v1.0")["README.md"].decode()
    assert "license: mit" in card and "## Limits\n\nDrawings" in card
    assert json.loads(hub.files(REPO, "v1.0")["release.json"])["extra"] == {"data_fingerprint": {"train": "ab"}}


def test_a_card_that_the_hub_refuses_stops_the_push(hub: LoopbackHub, run_dir: Path):
    with pytest.raises(InputError, match='"license" must be one of'):
        push(run_dir, "1.0", card={"license": "my-own"})
    assert REPO not in hub.store.repos


def test_the_token_is_nowhere(hub: LoopbackHub, run_dir: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    push(run_dir, "1.0")
    assert TOKEN in {request.token for request in hub.requests}
    assert TOKEN not in caplog.text
    assert not any(TOKEN.encode() in content for content in hub.files(REPO, "v1.0").values())
