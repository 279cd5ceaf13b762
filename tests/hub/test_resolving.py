from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from mmhf.errors import InputError
from mmhf.hub import hub_repo
from mmhf.hub.manifest import ReleaseReference, read_release
from mmhf.hub.releases import resolve_model, write_release


@pytest.fixture
def released(run_dir: Path, repo: Path) -> Path:
    for version in ("1.9", "1.10"):
        write_release(run_dir, repo, version)
    return repo


def test_every_way_to_name_a_release(released: Path):
    commit = read_release(released / "v1.9").commit
    for text in (f"{released}@v1.9", f"{released}@1.9", str(released / "v1.9"), f"{released}/v1.9/"):
        resolved = resolve_model(text)
        assert resolved.path == released / "v1.9"
        assert resolved.reference == ReleaseReference(str(released), "v1.9", commit)
    assert resolve_model(released).revision == "v1.10"


def test_a_run_folder_is_a_model_too(run_dir: Path):
    resolved = resolve_model(str(run_dir))
    assert (resolved.path, resolved.repo, resolved.revision) == (run_dir, str(run_dir), None)
    (run_dir / "trainer_state.json").write_text("changed")
    assert resolve_model(run_dir).commit == resolved.commit
    (run_dir / "tokenizer.json").write_text("changed")
    assert resolve_model(run_dir).commit != resolved.commit


def test_a_damaged_release_is_refused_by_every_name(released: Path):
    (released / "v1.10" / "model.safetensors").unlink()
    for text in (released, f"{released}@1.10", released / "v1.10"):
        with pytest.raises(InputError, match=r"model\.safetensors is missing"):
            resolve_model(text)
    assert resolve_model(released, verify=False).revision == "v1.10"
    assert resolve_model(f"{released}@1.9").revision == "v1.9"


def test_what_is_not_there_is_said_in_one_line(released: Path, run_dir: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (run_dir / "config.json").unlink()
    (run_dir / "checkpoint-10" / "config.json").write_text("{}")
    cases = {
        f"{released}@1.8": "no version 1.8; did you mean v1.",
        f"{released}@": "no version after the @",
        "org/name@": "no version after the @; write org/name@VERSION, or org/name alone",
        str(tmp_path / "empty"): "no model in it",
        str(run_dir): "its last checkpoint is .*checkpoint-10",
        str(released / "v1.9" / "config.json"): "is a file",
        str(released.parent / "fakedit@1.9"): "did you mean .*fakeddit",
    }
    for text, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            resolve_model(text)
        assert "\n" not in str(caught.value)


def test_another_name_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    asked = []
    snapshot = tmp_path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")

    def download(repo: str, revision: str | None = None, **options) -> str:
        asked.append((repo, revision))
        if repo == "org/absent":
            raise LocalEntryNotFoundError("Cannot find the requested files\nin the cache")
        return str(snapshot)

    monkeypatch.setattr(hub_repo, "snapshot_download", download)
    resolved = resolve_model("org/name@v2")
    assert (resolved.path, resolved.repo, resolved.revision, resolved.commit) == (
        snapshot,
        "org/name",
        "v2",
        "0123abcd",
    )
    assert resolve_model("org/name").revision is None
    with pytest.raises(InputError, match="org/absent: no such folder, and not to be had from the Hub") as caught:
        resolve_model("org/absent")
    assert "\n" not in str(caught.value)
    assert asked == [("org/name", "v2"), ("org/name", None), ("org/absent", None)]
