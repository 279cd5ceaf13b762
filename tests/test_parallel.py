from __future__ import annotations

import threading

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
