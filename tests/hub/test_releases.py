from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest

from mmhf.errors import InputError
from mmhf.files import file_sha256
from mmhf.hub.manifest import ReleaseNotes, ReleaseReference, read_release, verify_release
from mmhf.hub.releases import check_version_is_free, find_version, list_versions, write_release

_fork = multiprocessing.get_context("fork")


def test_a_release_holds_the_model_its_recipe_and_its_numbers(run_dir: Path, repo: Path):
    release_dir = write_release(run_dir, repo, "0.1", notes=ReleaseNotes(extra={"data_fingerprint": {"train": "ab"}}))
    assert release_dir == repo / "v0.1"
    assert sorted(path.name for path in release_dir.iterdir() if path.suffix != ".py") == [
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
        "processor_config.json",
        "recipe.yaml",
        "release.json",
        "tokenizer.json",
    ]
    for name in ("model.safetensors", "recipe.yaml", "metrics.json"):
        assert (release_dir / name).read_bytes() == (run_dir / name).read_bytes()
    config = json.loads((release_dir / "config.json").read_text())
    for reference in config.pop("auto_map").values():
        assert (release_dir / f"{reference.partition('.')[0]}.py").is_file()
    assert config == json.loads((run_dir / "config.json").read_text())
    release = verify_release(release_dir)
    assert release.version == "v0.1"
    assert release.task == "image-text-classification"
    assert release.metrics == {"test_accuracy": 0.8125}
    assert release.extra == {"data_fingerprint": {"train": "ab"}}
    assert release.parent is None
    assert release.parameters == 2000
    assert release.sizes["model.safetensors"] == (run_dir / "model.safetensors").stat().st_size
    assert release.environment["torch"][0].isdigit()
    assert release.files["model.safetensors"] == file_sha256(run_dir / "model.safetensors")
    card = (release_dir / "README.md").read_text()
    assert "0.8125" in card and 'pipeline("image-text-classification"' in card


@pytest.mark.parametrize("again", ["1.8", "v1.8", "1.8.0"])
def test_a_version_is_immutable(run_dir: Path, repo: Path, again: str):
    release_dir = write_release(run_dir, repo, "v1.8")
    before = {path.name: path.read_bytes() for path in release_dir.iterdir()}
    (run_dir / "metrics.json").write_text('{"test_accuracy": 1.0}')
    with pytest.raises(InputError, match=r"v1\.8 exists"):
        write_release(run_dir, repo, again)
    with pytest.raises(InputError, match=r"v1\.8 exists"):
        check_version_is_free(repo, again)
    check_version_is_free(repo, "1.9")
    assert {path.name: path.read_bytes() for path in release_dir.iterdir()} == before
    assert not (release_dir / "model.safetensors").stat().st_mode & 0o222


def test_versions_are_listed_in_order_and_found_in_any_spelling(run_dir: Path, repo: Path):
    for version in ("1.10", "1.9", "v2.0-rc.1", "0.1"):
        write_release(run_dir, repo, version)
    (repo / "notes").mkdir()
    (repo / "v7.0").mkdir()
    assert list_versions(repo) == ["v0.1", "v1.9", "v1.10", "v2.0-rc.1"]
    assert find_version(repo, "1.9.0") == "v1.9"
    with pytest.raises(InputError, match=r"no version 1\.11; did you mean v1\.10\?"):
        find_version(repo, "1.11")
    assert list_versions(repo / "absent") == []


def test_a_chain_of_parents_can_be_walked(run_dir: Path, repo: Path):
    parent = None
    for number, version in enumerate(("1.6", "1.7", "1.8")):
        (run_dir / "metrics.json").write_text(json.dumps({"test_accuracy": 0.7 + number / 10}))
        release = read_release(write_release(run_dir, repo, version, notes=ReleaseNotes(parent=parent)))
        parent = ReleaseReference(str(repo), release.version, release.commit)
    walked = [read_release(repo / "v1.8")]
    while (ancestor := walked[-1].parent) is not None:
        walked.append(read_release(Path(ancestor.repo) / str(ancestor.revision)))
        assert walked[-1].commit == ancestor.commit
    assert [release.version for release in walked] == ["v1.8", "v1.7", "v1.6"]
    assert len({release.commit for release in walked}) == 3
    assert "v1.7" in (repo / "v1.8" / "README.md").read_text()


def test_equal_content_has_equal_commits(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def commit(place: str) -> str:
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        return read_release(write_release(run_dir, "repo", "1.0")).commit

    first, second = commit("a"), commit("b")
    (run_dir / "tokenizer.json").write_text('{"changed": true}')
    assert first == second != commit("c")


@pytest.mark.parametrize("damage", ["model.safetensors", "tokenizer.json", "README.md"])
def test_a_damaged_file_is_named(run_dir: Path, repo: Path, damage: str):
    release_dir = write_release(run_dir, repo, "1.0")
    content = bytearray((release_dir / damage).read_bytes())
    content[-1] ^= 1
    (release_dir / damage).chmod(0o644)
    (release_dir / damage).write_bytes(content)
    with pytest.raises(InputError, match=f"{damage} has changed"):
        verify_release(release_dir)
    (release_dir / damage).unlink()
    with pytest.raises(InputError, match=f"{damage} is missing"):
        verify_release(release_dir)


@pytest.mark.parametrize("edit", [lambda text: text[:40], lambda text: text.replace('"v1.0"', "1"), lambda text: ""])
def test_a_broken_release_file_is_named(run_dir: Path, repo: Path, edit):
    path = write_release(run_dir, repo, "1.0") / "release.json"
    path.chmod(0o644)
    path.write_text(edit(path.read_text()))
    with pytest.raises(InputError, match=r"release\.json: damaged"):
        verify_release(path.parent)


def test_swapped_hashes_are_noticed(run_dir: Path, repo: Path):
    release_dir = write_release(run_dir, repo, "1.0")
    values = json.loads((release_dir / "release.json").read_text())
    del values["files"]["model.safetensors"]
    (release_dir / "release.json").chmod(0o644)
    (release_dir / "release.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"release\.json has changed"):
        verify_release(release_dir)


@pytest.mark.parametrize(
    "absent", ["config.json", "model.safetensors", "recipe.yaml", "metrics.json", "processor_config.json"]
)
def test_an_unfinished_run_cannot_be_released(run_dir: Path, repo: Path, absent: str):
    (run_dir / absent).unlink()
    with pytest.raises(InputError, match=f"lacks {absent}"):
        write_release(run_dir, repo, "1.0")
    assert not repo.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", b"\x00" * 50), ("metrics.json", b"[1]"), ("metrics.json", b"{"), ("recipe.yaml", b"- a\n")],
)
def test_a_damaged_run_leaves_no_version(run_dir: Path, repo: Path, name: str, content: bytes):
    (run_dir / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        write_release(run_dir, repo, "1.0")
    assert list_versions(repo) == []
    assert not repo.exists() or not list(repo.glob("*v1.0*"))


def test_truncated_weights_are_not_released(run_dir: Path, repo: Path):
    weights = run_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be released"):
        write_release(run_dir, repo, "1.0")


def test_a_place_that_is_no_repository_is_refused(run_dir: Path, tmp_path: Path):
    with pytest.raises(InputError, match="itself a model folder"):
        write_release(run_dir, run_dir, "1.0")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_release(run_dir, tmp_path / "file", "1.0")
    (tmp_path / "repo" / "v1.0").mkdir(parents=True)
    with pytest.raises(InputError, match="in the way"):
        write_release(run_dir, tmp_path / "repo", "1.0")
    with pytest.raises(InputError, match="not a version"):
        write_release(run_dir, tmp_path / "repo", "../../escape")


def _release_and_die(run_dir: Path, repo: Path, die_at: int) -> None:
    """Release, but be killed right before the `die_at`-th thing done to a file of the repository."""
    left = die_at

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if event.split(".")[0] in ("open", "os", "shutil") and any(str(repo) in str(arg) for arg in args):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    write_release(run_dir, repo, "1.0")


@pytest.mark.slow
def test_killed_at_any_point_leaves_no_half_version(run_dir: Path, repo: Path):
    write_release(run_dir, repo, "0.9")
    killed = 0
    for die_at in range(1, 1000, 3):
        child = _fork.Process(target=_release_and_die, args=(run_dir, repo, die_at))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        killed += 1
        if "v1.0" in list_versions(repo):
            verify_release(repo / "v1.0")
            break
        assert not (repo / "v1.0").exists()
    assert killed > 20
    assert list_versions(repo) == ["v0.9", "v1.0"]
    verify_release(repo / "v0.9")
    verify_release(repo / "v1.0")
    write_release(run_dir, repo, "1.1")
    assert not list(repo.glob(".staging-*"))


def _release_and_report(run_dir: Path, repo: Path, barrier, outcomes) -> None:
    barrier.wait()
    try:
        write_release(run_dir, repo, "1.0")
        outcomes.put("released")
    except InputError as error:
        outcomes.put(str(error))


def test_of_concurrent_releases_one_wins(run_dir: Path, repo: Path):
    barrier, outcomes = _fork.Barrier(4), _fork.Queue()
    children = [_fork.Process(target=_release_and_report, args=(run_dir, repo, barrier, outcomes)) for _ in range(4)]
    for child in children:
        child.start()
    results = [outcomes.get(timeout=300) for _ in children]
    for child in children:
        child.join()
    assert results.count("released") == 1
    assert sum("v1.0 exists" in result for result in results) == 3
    verify_release(repo / "v1.0")
