from __future__ import annotations

import os

import pytest

from mmhf.data.images import DataFolder


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    (root / "deep").mkdir(parents=True)
    (root / "a.jpg").write_bytes(b"a")
    (tmp_path / "secret.jpg").write_bytes(b"s")
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / "b.jpg").write_bytes(b"b")
    os.symlink(tmp_path / "secret.jpg", root / "out.jpg")
    os.symlink(root / "a.jpg", root / "in.jpg")
    os.symlink(tmp_path / "data2", root / "sibling")
    return root


@pytest.mark.parametrize("name", ["a.jpg", "deep/x.jpg", "in.jpg", "./a.jpg", "..jpg", "a..b/c.jpg"])
def test_paths_that_stay_inside(folder, name):
    assert DataFolder(folder).find_escape(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.jpg", "leaves the data folder"),
        ("deep/../../secret.jpg", "leaves the data folder"),
        ("deep\\..\\..\\secret.jpg", "leaves the data folder"),
        ("/etc/passwd", "not relative"),
        ("C:\\secret.jpg", "not relative"),
        ("\\\\host\\share\\secret.jpg", "not relative"),
        ("out.jpg", "link out of the data folder"),
        ("sibling/b.jpg", "link out of the data folder"),
        ("https://example.org/a.jpg", "URL"),
        ("a\0.jpg", "NUL"),
    ],
)
def test_paths_that_leave(folder, name, reason):
    assert reason in str(DataFolder(folder).find_escape(name))


def test_the_folder_itself_may_be_a_link(folder, tmp_path):
    os.symlink(folder, tmp_path / "link")
    linked = DataFolder(tmp_path / "link")
    assert linked.find_escape("a.jpg") is None
    assert "link out" in str(linked.find_escape("out.jpg"))
