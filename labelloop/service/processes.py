"""Pools of worker processes that end with their parent."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_all_start_methods, get_context, parent_process
from typing import Any

# A fork server listens on a socket whose path may have 107 bytes; it adds `/pymp-xxxxxxxx/listener-xxxxxxxx`.
_MAX_FOLDER_BYTES = 107 - 32


def process_pool(
    workers: int, preload: str, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """Create a pool of processes that are not forked from this one: it may have threads and connections.

    Args:
        workers: Number of processes.
        preload: The module to import once for all processes, where the system has fork servers.
        initializer: Called once in each process.
        initargs: Arguments of `initializer`.
    """
    socket_fits = len(os.fsencode(tempfile.gettempdir())) <= _MAX_FOLDER_BYTES
    method = "forkserver" if "forkserver" in get_all_start_methods() and socket_fits else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([preload])
    return ProcessPoolExecutor(workers, context, initializer=_initialise, initargs=(initializer, *initargs))


def _initialise(initializer: Callable[..., None] | None, *initargs: Any) -> None:
    # These signals reach every process of a terminal or service; the main process ends the others.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    """End this process when the parent ends, for whatever reason."""
    parent = parent_process()
    if parent is not None:
        with suppress(Exception):
            parent.join()
        os._exit(1)
