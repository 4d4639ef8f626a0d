"""Run fits in parallel threads, with one BLAS thread per matrix."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import OpenBLASController, threadpool_limits

from labelloop.service.system import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


# Cores of the current thread, where it is one of a pool.
_SHARE = threading.local()


class _Limit:
    """Process-wide, reference-counted limit on BLAS threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._limits: threadpool_limits | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Limit BLAS to one thread: the first holder sets the limit for the process, the last one restores it."""
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
        """Make the current thread the owner of the limit; threadpoolctl ignores changes by other threads."""
        OpenBLASController.clear_controlling_thread(force=True)


_LIMIT = _Limit()

# Context manager: BLAS uses one thread per matrix in this process. It may be nested and entered by several threads.
# Small matrices gain nothing from threads, and threads that wait for each other on a busy machine made a fit up to a
# hundred times slower.
single_threaded_blas = _LIMIT.hold


def parallel_map(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply `work` to every item in a thread pool and keep the order; numpy releases the GIL while it computes.

    A call inside `work` gets its share of the cores: more threads than cores are no faster, and each fit has its own
    copy of its rows.

    Raises:
        Exception: Whatever the first failing item raises.
    """
    queue = list(items)
    cores: int = getattr(_SHARE, "cores", 0) or available_cores()
    threads = min(len(queue), cores)
    if threads < 2:
        return [work(item) for item in queue]

    def share() -> None:
        _SHARE.cores = max(cores // threads, 1)

    with ThreadPoolExecutor(threads, thread_name_prefix="fit", initializer=share) as pool:
        return list(pool.map(work, queue))
