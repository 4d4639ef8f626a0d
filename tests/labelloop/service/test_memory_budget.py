"""The budget of bytes: granted in order, bounded in waiting, given back whatever happens."""

import gc
import threading
import time

import numpy as np
import pytest

from labelloop.service.errors import Busy
from labelloop.service.memory_budget import Abandoned, MemoryBudget


def test_leases_never_weigh_more_than_the_limit():
    budget, used, peak, lock = MemoryBudget(100), [0], [0], threading.Lock()

    def work(weight):
        with budget.lease(weight):
            with lock:
                used[0] += weight
                peak[0] = max(peak[0], used[0])
            time.sleep(0.001)
            with lock:
                used[0] -= weight

    threads = [threading.Thread(target=work, args=(10 + 13 * (number % 7),)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peak[0] <= 100
    with budget.lease(100):  # all of it came back
        pass


def test_a_large_lease_is_not_starved_by_small_ones(wait_until):
    budget, order = MemoryBudget(100), []

    def work(weight):
        with budget.lease(weight):
            order.append(weight)

    with budget.lease(50):
        large = threading.Thread(target=work, args=(90,))
        large.start()
        wait_until(lambda: budget.waiting == 1)
        small = threading.Thread(target=work, args=(10,))
        small.start()
        wait_until(lambda: budget.waiting == 2)
        assert order == []
    large.join()
    small.join()
    assert order == [90, 10]


def test_a_wait_for_memory_ends_as_busy():
    budget = MemoryBudget(100, wait_s=0.01)
    with budget.lease(60):
        with pytest.raises(Busy, match="No memory") as error, budget.lease(60):
            pass
        assert (error.value.status, error.value.retry_after_s) == (503, 5)
    with budget.lease(100):
        pass


def test_too_much_waiting_work_is_refused_at_once(wait_until):
    budget, go = MemoryBudget(10, wait_s=60), threading.Event()

    def work():
        with budget.lease(10):
            go.wait(60)

    threads = [threading.Thread(target=work) for _ in range(9)]
    for thread in threads:
        thread.start()
    wait_until(lambda: budget.waiting == 8)
    with pytest.raises(Busy, match="wait for memory"), budget.lease(10):
        pass
    go.set()
    for thread in threads:
        thread.join()


def test_a_wait_ends_when_the_client_has_gone():
    budget = MemoryBudget(100)
    with budget.lease(60), pytest.raises(Abandoned), budget.lease(60, abandoned=lambda: True):
        pass


def test_kept_bytes_come_back_when_the_value_is_freed():
    budget = MemoryBudget(1000, wait_s=0.01)
    value = np.zeros(600, np.uint8)
    with budget.lease(900) as lease:
        lease.retain_for(value, value.nbytes)
    with budget.lease(400), pytest.raises(Busy), budget.lease(1):
        pass
    part = value[10:20]  # a view keeps its base
    del value
    gc.collect()
    with pytest.raises(Busy), budget.lease(500):
        pass
    del part
    gc.collect()
    with budget.lease(1000):
        pass
