"""Work in threads: in order, with the first failure, and matrices computed by one thread however many fits run."""

import threading

import numpy as np  # noqa: F401 - loads the library whose threads are counted
import pytest
from threadpoolctl import threadpool_info

from ml_backend.training.parallel import parallel_map, single_threaded_blas


def threads():
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_every_item_is_done_in_its_order():
    assert parallel_map(lambda one: one * one, range(5)) == [0, 1, 4, 9, 16]
    assert parallel_map(str, []) == []
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda one: 1 // one, [1, 0])


def test_a_fit_that_ends_leaves_the_limit_to_the_one_that_goes_on():
    before = threads()
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first():
        with single_threaded_blas():
            first_in.set()
            second_in.wait(10)
        first_out.set()

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait(10)
    with single_threaded_blas():
        second_in.set()
        first_out.wait(10)
        assert threads() == {1}
    thread.join()
    assert threads() == before
