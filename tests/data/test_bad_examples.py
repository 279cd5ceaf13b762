from __future__ import annotations

import csv
import multiprocessing
from pathlib import Path

from mmhf.data.bad_examples import BadExample, BadExampleLog


def _record_many(path: Path, first: int) -> None:
    log = BadExampleLog(path)
    for row in range(first, first + 200):
        log.record(BadExample("train", row, f"id{row}", "broken " * 30))


def test_lines_of_several_processes_never_mix(tmp_path):
    path = tmp_path / "deep" / "bad.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_record_many, args=(path, first)) for first in (0, 200, 400)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [example.row for example in BadExampleLog(path).read()] == list(range(600))


def test_csv_has_each_example_once_by_split_and_row(tmp_path):
    log = BadExampleLog(tmp_path / "bad.jsonl")
    late = BadExample("train", 10, 'a,"b"', "line\nbreak")
    log.extend([BadExample("test", 1, "t", "x"), late, BadExample("train", 9, "nan", "y"), late])
    log.write_csv(tmp_path / "bad.csv")
    with open(tmp_path / "bad.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["split", "row", "id", "reason"],
        ["train", "9", "nan", "y"],
        ["train", "10", 'a,"b"', "line\nbreak"],
        ["test", "1", "t", "x"],
    ]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".csv" or path.name.startswith(".")] == [
        "bad.csv"
    ]


def test_no_example_gives_a_header_alone(tmp_path):
    BadExampleLog(tmp_path / "none.jsonl").write_csv(tmp_path / "bad.csv")
    assert (tmp_path / "bad.csv").read_text().split() == ["split,row,id,reason"]


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path):
    log = BadExampleLog(tmp_path / "bad.jsonl")
    log.record(BadExample("train", 1, "a", "x"))
    with open(log.path, "a") as file:
        file.write('["train", 2, "b')
    assert [example.id for example in log.read()] == ["a"]
