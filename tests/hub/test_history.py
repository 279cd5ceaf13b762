from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from mmhf.cli import main
from mmhf.errors import InputError
from mmhf.hub.history import Change, changed_settings, family_trees, read_history, read_version
from mmhf.hub.lineage import release_settings
from mmhf.hub.manifest import ReleaseNotes
from mmhf.hub.pushing import push_release
from mmhf.hub.releases import resolve_model, write_release

# Version → parent, learning rate, accuracy: 1.8 and 1.9 both go on from 1.7.
VERSIONS = {
    "1.6": (None, 0.001, 0.5),
    "1.7": ("1.6", 0.0001, 0.7),
    "1.8": ("1.7", 0.0001, 0.65),
    "1.9": ("1.7", 1e-5, 0.8),
}


def _recipe(rate: float, version: str) -> str:
    return (
        "task: image-text-classification\n"
        f"training: {{learning_rate: {rate}, output_dir: outputs/{version}}}\n"
        f"stages: [{{name: head, epochs: {5 if version == '1.9' else 3}}}]\n"
        f"release: {{repo: x, version: '{version}'}}\n"
    )


@pytest.fixture(params=["folder", pytest.param("hub", marks=pytest.mark.slow)])
def family(request, make_run: Callable[..., Path], repo: Path) -> str:
    """A repository with these versions, in a folder or on the Hub; gives its name."""
    name = str(repo) if request.param == "folder" else "org/fakeddit"
    if request.param == "hub":
        request.getfixturevalue("hub")
    for seed, (version, (parent, rate, accuracy)) in enumerate(VERSIONS.items()):
        run_dir = make_run(version, seed=seed, recipe=_recipe(rate, version), metrics={"test_accuracy": accuracy})
        reference = None if parent is None else resolve_model(f"{name}@{parent}").reference
        notes = ReleaseNotes(parent=reference, extra={"data_fingerprint": {"train": "ab" * 32}})
        if request.param == "folder":
            write_release(run_dir, repo, version, notes=notes)
        else:
            push_release(run_dir, release_settings({"repo": name, "version": version, "push": True}), notes=notes)
    return name


def test_the_tree_of_a_family(family: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    trees = family_trees(read_history(family))
    assert [tree.record.release.version for tree in trees] == ["v1.6"]
    assert [child.record.release.version for child in trees[0].children] == ["v1.7"]
    assert [child.record.release.version for child in trees[0].children[0].children] == ["v1.8", "v1.9"]
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["lineage", family]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == family
    assert "v1.7" in lines[2 - 0] and "test_accuracy 0.7000 (+0.2000)" in lines[2]
    assert lines[1].index("v1.6") < lines[2].index("v1.7")
    assert any("training.learning_rate: 0.001 → 0.0001" in line for line in lines)
    assert any("stages.0.epochs: 3 → 5" in line for line in lines)
    assert not any("output_dir" in line or "release." in line for line in lines)


def test_two_versions_compared(family: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["diff", f"{family}@v1.7", f"{family}@1.9"]) == 0
    out = capsys.readouterr().out
    assert "training.learning_rate" in out and "0.0001" in out and "1e-05" in out
    assert "test_accuracy" in out and "+0.1" in out
    assert "the same: data, environment" in out


def test_only_small_files_are_fetched_to_compare(hub: LoopbackHub, run_dir: Path):
    push_release(run_dir, release_settings({"repo": "org/name", "version": "1.0", "push": True}))
    hub.requests.clear()
    record = read_version("org/name@v1.0")
    assert record.release.parameters == 2000 and record.commit == hub.repo("org/name").tags["v1.0"]
    assert len(read_history("org/name")) == 1
    assert not any("safetensors" in request.line for request in hub.requests)


def test_a_parent_from_elsewhere_is_named(run_dir: Path, make_run, repo: Path, tmp_path: Path, capsys):
    other = tmp_path / "releases" / "other"
    write_release(make_run("parent", seed=3), other, "2.0")
    write_release(run_dir, repo, "0.1", notes=ReleaseNotes(parent=resolve_model(f"{other}@2.0").reference))
    assert main(["lineage", str(repo)]) == 0
    assert "from " in capsys.readouterr().out


def test_settings_that_only_name_the_run_are_no_changes():
    old = {"training": {"learning_rate": 1, "output_dir": "a"}, "release": {"version": "1"}, "data": {"limit": None}}
    new = {"training": {"learning_rate": 2, "output_dir": "b"}, "init_from": "x", "model": {"dims": [1, 2]}}
    assert changed_settings(old, new) == [
        Change("training.learning_rate", 1, 2),
        Change("model.dims", None, [1, 2]),
    ]


def test_what_is_not_there_is_said_in_one_line(hub: LoopbackHub, tmp_path: Path, run_dir: Path, repo: Path):
    (tmp_path / "empty").mkdir()
    for name, message in ((str(tmp_path / "empty"), "has no versions"), ("org/absent", "no such repository")):
        with pytest.raises(InputError, match=message) as caught:
            read_history(name)
        assert "\n" not in str(caught.value)
    write_release(run_dir, repo, "1.0")
    with pytest.raises(InputError, match=r"no version 2\.0"):
        read_version(f"{repo}@2.0")


def test_a_metric_that_nobody_measured_is_refused(run_dir: Path, repo: Path, capsys: pytest.CaptureFixture[str]):
    write_release(run_dir, repo, "1.0")
    assert main(["lineage", str(repo), "--metric", "test_acuracy"]) == 2
    assert "did you mean" in capsys.readouterr().err
