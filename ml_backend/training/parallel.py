"""Owns work in threads: a fit takes as many cores as there are, though each of its matrices is computed by one."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import OpenBLASController, threadpool_limits

from labelloop.service.cores import cores

Given = TypeVar("Given")
Made = TypeVar("Made")


class _Limit:
    """The process's one limit on the threads of matrices, held by as many as want it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._limits: threadpool_limits | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """The first who comes limits, the last who goes lifts: it holds for the whole process, not for a thread."""
        with self._lock:
            if not self._holders:
                self._take_over()
                self._limits = threadpool_limits(1)
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders and self._limits is not None:
                    self._take_over()
                    self._limits.restore_original_limits()
                    self._limits = None

    @staticmethod
    def _take_over() -> None:
        """Only the thread that limited first may change a limit in threadpoolctl, which says nothing to others."""
        OpenBLASController.clear_controlling_thread(force=True)


_LIMIT = _Limit()

single_threaded_blas = _LIMIT.hold
"""A block in which each matrix is computed by one thread; several may run at once.

Matrices as small as those of a fit gain nothing from threads, and threads that wait for each other on a busy machine
cost much: a fit was seen to take a hundred times as long.
"""


def parallel_map(work: Callable[[Given], Made], items: Iterable[Given]) -> list[Made]:
    """`work` of every item, in their order, a few at once. numpy leaves the interpreter free while it computes.

    Raises:
        Whatever the first item raises that fails.
    """
    waiting = list(items)
    threads = min(len(waiting), cores())
    if threads < 2:
        return [work(one) for one in waiting]
    with ThreadPoolExecutor(threads, thread_name_prefix="fit") as pool:
        return list(pool.map(work, waiting))
