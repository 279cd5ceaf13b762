from __future__ import annotations

import os
import threading
import time

import pytest

from mmhf.errors import InputError
from mmhf.parallel import first_error, gather, map_in_threads, rank, world_size


def test_alone():
    assert (rank(), world_size(), gather("x")) == (0, 1, ["x"])
    error = InputError("no")
    assert first_error(error) is error and first_error(None) is None


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


@pytest.mark.parametrize(
    ("work", "most"), [(lambda _: sum(range(300_000)), os.cpu_count()), (lambda _: time.sleep(0.05), 16)]
)
def test_there_are_more_threads_than_cores_only_for_work_that_waits(work, most):
    names = set()

    def noted(number):
        work(number)
        names.add(threading.current_thread().name)

    list(map_in_threads(noted, range(33)))
    names.discard(threading.current_thread().name)  # tried the first
    assert 1 <= len(names) <= most
    assert most < 16 or len(names) > 8
