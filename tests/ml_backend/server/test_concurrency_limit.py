"""A worker predicts a few requests at once and lets some wait; health and setup answer whatever it is busy with."""

import threading
import time

import pytest

from ml_backend.server.concurrency_limit import QUEUED_PER_SLOT, Busy, ConcurrencyLimiter


def test_requests_above_the_limit_are_rejected_at_once():
    turns, go, inside = ConcurrencyLimiter(1), threading.Event(), []

    def work():
        with turns.acquire():
            inside.append(1)
            go.wait(60)

    threads = [threading.Thread(target=work) for _ in range(1 + QUEUED_PER_SLOT)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while turns._inside < 1 + QUEUED_PER_SLOT and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(inside) == 1
    with pytest.raises(Busy) as error, turns.acquire():
        pass
    assert error.value.status == 503
    go.set()
    for thread in threads:
        thread.join()
    assert len(inside) == 1 + QUEUED_PER_SLOT
    with turns.acquire() as waited_s:
        assert waited_s < 30  # the queue is empty; otherwise it would be 60


def test_waiting_has_a_timeout():
    turns = ConcurrencyLimiter(1, wait_s=0.05)
    with turns.acquire(), pytest.raises(Busy, match="no slot for a prediction became free within"), turns.acquire():
        pass
    with turns.acquire():
        pass


def test_an_error_gives_its_turn_back():
    turns = ConcurrencyLimiter(1)
    for _ in range(5):
        with pytest.raises(ValueError, match="bad"), turns.acquire():
            raise ValueError("bad")
