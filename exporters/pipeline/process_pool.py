"""`Processes`: pieces of an export converted on this machine's other cores."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_all_start_methods, get_context, parent_process

from exporters.errors import WorkerLost
from exporters.pipeline.scheduler import ConvertedUnit, WorkerConfig, WorkUnit, convert_unit
from labelloop.service.system import available_cores

_MOST = 8
"""Processes that are started where nobody says how many; with more, cutting the source is what they wait for."""


def default_workers() -> int:
    """How many processes are worth their while here."""
    return min(available_cores(), _MOST)


class ProcessPool:
    """A pool of processes. They are started anew, not forked: whoever exports may have threads and connections."""

    def __init__(self, order: WorkerConfig, workers: int) -> None:
        method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        context = get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["exporters.pipeline.scheduler"])
        self.workers = workers
        self._convert = partial(convert_unit, order)
        self._executor = ProcessPoolExecutor(workers, context, initializer=_begin)

    def submit(self, piece: WorkUnit) -> "Future[ConvertedUnit]":
        """See `exporters.pipeline.scheduler.Pool`."""
        with _told():
            return self._executor.submit(self._convert, piece)

    def result(self, submitted: "Future[ConvertedUnit]") -> ConvertedUnit:
        """See `exporters.pipeline.scheduler.Pool`.

        Raises:
            WorkerLost: A process ended; most often there was no memory left.
        """
        with _told():
            return submitted.result()

    def close(self) -> None:
        """See `exporters.pipeline.scheduler.Pool`. What was not begun is given up."""
        self._executor.shutdown(cancel_futures=True)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise WorkerLost("one of its processes ended in the middle", "--workers 1") from error


def _begin() -> None:
    for stop in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # reach every process of a terminal or service; the first ends the rest
        signal.signal(stop, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    """End this process as soon as the one that exports has ended, however it ended."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
