"""Parallel fits keep their order, raise the first failure, and use one BLAS thread per matrix."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np  # noqa: F401 - loads the library whose threads are counted
import pytest
from threadpoolctl import threadpool_info

from ml_backend.training.parallel import parallel_map, single_threaded_blas


def threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_results_are_in_the_order_of_the_items():
    assert parallel_map(lambda item: item * item, range(5)) == [0, 1, 4, 9, 16]
    assert parallel_map(str, []) == []
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda item: 1 // item, [1, 0])


def test_limit_holds_until_the_last_fit_ends():
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


@pytest.mark.parametrize(("cores", "threads"), [(2, 0), (4, 2), (9, 4)])
def test_nested_calls_share_the_cores(monkeypatch, cores, threads):
    monkeypatch.setattr("ml_backend.training.parallel.available_cores", lambda: cores)
    pools = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, size, **options):
            pools.append(size)
            super().__init__(size, **options)

    monkeypatch.setattr("ml_backend.training.parallel.ThreadPoolExecutor", Pool)
    rows = parallel_map(lambda row: parallel_map(lambda item: item, range(10 * row, 10 * row + 9)), range(2))
    assert rows == [list(range(9)), list(range(10, 19))]
    assert pools == [2, *([threads, threads] if threads else [])]
