"""Write many objects to a bucket in parallel, with bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from labelloop.service.store.base import Progress

THREADS = 16


def put_concurrently(
    put: Callable[[str, bytes | Path], object],
    items: Iterable[tuple[str, bytes | Path]],
    progress: Progress | None,
) -> int:
    """Write every item; the first error stops it and is raised after the running writes have finished.

    Args:
        put: Writes one object; called in several threads.
        items: Read one by one, at most `2 * THREADS` ahead of the finished writes.
        progress: As in `Store.put_many`; called in the caller's thread.

    Returns:
        The number of objects written.
    """
    done = size = 0
    pending: deque[tuple[Future[object], int]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="store") as pool:
        try:
            for key, data in items:
                if len(pending) >= 2 * THREADS:
                    done, size = _finish_oldest(pending, done, size, progress)
                length = data.stat().st_size if isinstance(data, Path) else len(data)
                pending.append((pool.submit(put, key, data), length))
            while pending:
                done, size = _finish_oldest(pending, done, size, progress)
        except BaseException:
            for future, _ in pending:
                future.cancel()
            raise
    return done


def _finish_oldest(
    pending: deque[tuple[Future[object], int]], done: int, size: int, progress: Progress | None
) -> tuple[int, int]:
    future, length = pending.popleft()
    future.result()
    if progress is not None:
        progress(done + 1, size + length)
    return done + 1, size + length
