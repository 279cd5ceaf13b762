from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from mmhf.errors import InputError
from mmhf.files import expand_path, read_json_object, whole_file, whole_folder, write_csv, write_json, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new"
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file.txt"
    with whole_file(path) as one, whole_file(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_what_is_being_written_is_no_file_of_a_run(tmp_path):
    with whole_file(tmp_path / "model.safetensors") as temporary:
        temporary.touch()
        assert not list(tmp_path.glob("*.safetensors"))


KILLED = """
import os, sys
from pathlib import Path
from mmhf.files import whole_file, whole_folder

folder = Path(sys.argv[1])
with whole_file(folder / "file.txt") as file, whole_folder(folder / "folder") as other:
    file.write_text("half")
    (other / "file").write_text("half")
    print("begun", flush=True)
    sys.stdin.read()
    os._exit(9)
"""


def test_what_a_killed_process_left_goes_with_the_next_write_and_what_others_write_stays(tmp_path):
    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"begun\n"
        return process

    killed, alive = start(), start()
    left = set(tmp_path.iterdir())
    assert len(left) == 4
    killed.communicate()
    of_living = {path for path in left if f"-{alive.pid}-" in path.name}
    elsewhere = tmp_path / f".file.txt.00000000-1-{'0' * 16}.partial"
    older = tmp_path / f".file.txt.00000000-1-{'1' * 16}.partial"
    for path in (elsewhere, older):
        path.touch()
    os.utime(older, (time.time() - 100_000,) * 2)
    with whole_file(tmp_path / "file.txt") as temporary:
        assert set(tmp_path.iterdir()) == {*of_living, elsewhere}
        temporary.write_text("whole")
    alive.communicate()
    assert len(of_living) == 2 and (tmp_path / "file.txt").read_text() == "whole"


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "folder"
    with pytest.raises(RuntimeError), whole_folder(folder) as temporary:
        (temporary / "file").write_text("half")
        raise RuntimeError
    assert not list(folder.parent.iterdir())
    with whole_folder(folder) as temporary:
        (temporary / "file").write_text("whole")
        assert not folder.exists()
    assert (folder / "file").read_text() == "whole"
    with pytest.raises(OSError), whole_folder(folder) as temporary:
        (temporary / "file").write_text("other")
    assert (folder / "file").read_text() == "whole"
    assert [each.name for each in folder.parent.iterdir()] == ["folder"]


def test_text_json_and_csv(tmp_path):
    write_text(tmp_path / "a.txt", "bad name: \udcff")
    assert (tmp_path / "a.txt").read_bytes() == rb"bad name: \udcff"
    value = {"word": "Bär", "name": "\udcff"}
    write_json(tmp_path / "a.json", value)
    assert read_json_object(tmp_path / "a.json") == value
    write_csv(tmp_path / "a.csv", ["id", "reason"], [(1, 'with "quotes"')])
    assert (tmp_path / "a.csv").read_bytes() == b'id,reason\n1,"with ""quotes"""\n'


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), (b"{", "not JSON"), (b"\xff", "not JSON"), (b"[1]", "not a JSON object")],
)
def test_bad_json_is_one_line(tmp_path, content, reason):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_json_object(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_what_is_no_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("written", "expanded"),
    [
        ("~/x", "/home/me/x"),
        ("$HOME/x", "/home/me/x"),
        ("$SCRATCH", "/scratch"),
        ("/data/$USER_NAME/run-$USER_NAME", "/data/me/run-me"),
        ("${SCRATCH}/x", "/scratch/x"),
        ("${oc.env:SCRATCH}/x", "/scratch/x"),
        ("${oc.env:ABSENT,/tmp}/x", "/tmp/x"),
        ("a word of ${USER_NAME}", "a word of me"),
        ("sqlite:///$SCRATCH/m.db", "sqlite:////scratch/m.db"),
        *((same, same) for same in ("data/x", "s3://b/{0..9}.tar", "$5 a piece", "tea in $USD/EUR", "a~b/c", "^/x$")),
    ],
)
def test_home_folders_and_environment_variables_are_put_in(written, expanded, monkeypatch):
    for name, value in {"HOME": "/home/me", "SCRATCH": "/scratch", "USER_NAME": "me"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ABSENT", raising=False)
    assert expand_path(written) == expanded


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("${ABSENT}/x", "no environment variable ABSENT"),
        ("$ABSENT/x", "no environment variable ABSENT"),
        ("${data.path}", "only environment variables"),
        ("${X", "begins the name"),
        ("~nobody-of-this-name/x", "no such user"),
        ("data/~/x", "only where a path begins"),
        ("sqlite:///~/m.db", "only where a path begins"),
        ("${HF_TOKEN}", "sounds like a secret"),
    ],
)
def test_what_cannot_be_put_in_is_refused(written, message, monkeypatch):
    monkeypatch.delenv("ABSENT", raising=False)
    with pytest.raises(InputError, match=re.escape(message)):
        expand_path(written)
