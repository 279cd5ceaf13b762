from __future__ import annotations

import os
import threading

import pytest
from failing_in_processes import told_in_each_case
from programs import call_together

from mmhf.cli import main
from mmhf.errors import InputError, OtherProcessError
from mmhf.parallel import failing_together, gather, map_in_threads, rank, world_size


def test_alone():
    assert (rank(), world_size(), gather("x")) == (0, 1, ["x"])
    error = InputError("no")
    with pytest.raises(InputError) as raised, failing_together():
        raise error
    assert raised.value is error
    with failing_together():
        pass


def test_what_another_process_refuses_is_refused_here(monkeypatch):
    theirs = [InputError("no"), InputError("nor here")]
    monkeypatch.setattr("mmhf.parallel.gather", lambda own: [own, *theirs])
    with pytest.raises(InputError, match="^no$"), failing_together():
        pass


def test_what_fails_in_one_of_two_processes_ends_both():
    """None waits; who failed has its own error, the other a line that names it, and then they go on alike."""
    full, broken = (
        "[Errno 28] No space left on device: '/full'",
        "'utf-8' codec can't decode byte 0xff in position 0: no",
    )
    first, second = call_together(told_in_each_case, 2)
    assert first == [
        (
            "OtherProcessError",
            f"the process of rank 1 failed (OSError: {full}), so all end; mend that and start again",
            False,
        ),
        ("DamagedError", "store: is damaged; remove it", True),
        ("OSError", full, True),
        ("UnicodeDecodeError", f"{broken}\nway", True),
        "decided in 0",
    ]
    assert second == [
        ("OSError", full, True),
        ("DamagedError", "store: is damaged; remove it", False),
        ("UnicodeDecodeError", f"{broken}\nway", True),
        (
            "OtherProcessError",
            f"the process of rank 0 failed (UnicodeDecodeError: {broken} way), so all end; mend that and start again",
            False,
        ),
        "decided in 0",
    ]


def test_a_program_that_ends_because_another_failed_says_so_in_one_line(monkeypatch, capsys):
    def fail(arguments):
        raise OtherProcessError("the process of rank 1 failed")

    monkeypatch.setattr("mmhf.cli._run", fail)
    assert main([]) == 1
    assert capsys.readouterr().err == "error: the process of rank 1 failed\n"


@pytest.mark.parametrize("label", [None, "counting"])
def test_threads_keep_the_order(label):
    names = set()

    def square(number: int) -> int:
        names.add(threading.current_thread().name)
        return number**2

    assert list(map_in_threads(square, range(50), label=label, threads=4)) == [number**2 for number in range(50)]
    assert threading.current_thread().name not in names


def test_an_error_in_a_thread_comes_out():
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda number: 1 // number, [1, 0]))


@pytest.mark.parametrize(("share", "most"), [(0.9, os.cpu_count()), (0.1, 16)])
def test_there_are_more_threads_than_cores_only_for_work_that_waits(share, most, monkeypatch):
    clock = 0.0
    monkeypatch.setattr("mmhf.parallel.time.perf_counter", lambda: clock)
    monkeypatch.setattr("mmhf.parallel.time.thread_time", lambda: share * clock)
    together = threading.Barrier(min(most, 16), timeout=60)  # that many are needed to go on
    names = set()

    def noted(number):
        nonlocal clock
        if number == 0:  # is tried alone
            clock = 1.0
            return
        names.add(threading.current_thread().name)
        together.wait()

    list(map_in_threads(noted, range(1 + 64 * min(most, 16))))
    assert len(names) == min(most, 16)
