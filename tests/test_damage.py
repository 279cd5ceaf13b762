from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from mmhf.damage import content_hash, find_damage, is_model_file, mark_complete, refuse_damage
from mmhf.errors import DamagedError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plots").mkdir()
    for name in ("model.safetensors", "recipe.yaml", "plots/roc.png"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    mark_complete(tmp_path)
    return tmp_path


def test_a_folder_as_it_was_written_is_whole(folder: Path):
    assert find_damage(folder) is None
    (folder / "later.txt").write_text("added since")
    refuse_damage(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml", "plots/roc.png"])
def test_each_damage_is_told_by_name(folder: Path, name: str):
    path, content = folder / name, (folder / name).read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert find_damage(folder) == f"{name} is damaged"
    path.write_bytes(content[:-1])
    assert find_damage(folder) == f"{name} has {len(content) - 1} bytes, it was written with {len(content)}"
    path.unlink()
    assert find_damage(folder) == f"{name} is missing"
    assert (find_damage(folder, is_model_file) is None) == name.startswith("plots")
    with pytest.raises(DamagedError, match=f"{folder}: {name} is missing; restore it, or remove") as caught:
        refuse_damage(folder)
    assert "\n" not in str(caught.value)


def test_a_release_is_known_by_its_own_list(folder: Path):
    noted = json.loads((folder / "complete").read_text())
    (folder / "complete").unlink()
    values = {name: {file: each[at] for file, each in noted.items()} for at, name in enumerate(("sizes", "checksums"))}
    (folder / "release.json").write_text(json.dumps(values))
    assert find_damage(folder) is None
    (folder / "recipe.yaml").write_text("task: x")
    assert (find_damage(folder) or "").startswith("recipe.yaml has 7 bytes")


@pytest.mark.parametrize("content", ["[]", "{", '{"recipe.yaml": 3}', '{"recipe.yaml": ["a"]}', "\0"])
def test_a_damaged_marker_is_told(folder: Path, content: str):
    (folder / "complete").write_text(content)
    assert find_damage(folder) == "complete is damaged"


def test_what_cannot_be_known_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "complete").unlink()
    assert find_damage(folder) is None and not caplog.records
    (folder / "metrics.json").write_text("{}")  # a finished run, whose marker was removed
    with caplog.at_level(logging.WARNING):
        assert find_damage(folder) is None and find_damage(folder) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / 'complete'}: is missing, so damage to the files beside it cannot be noticed"
    ]


def test_a_large_file_is_read_again_when_it_changed(tmp_path: Path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(2**24 + 5))
    before = content_hash(path)
    assert content_hash(path) == before
    with path.open("r+b") as file:
        file.seek(2**23)
        file.write(b"\1")
    os.utime(path, ns=(1, 1))
    assert content_hash(path) != before
