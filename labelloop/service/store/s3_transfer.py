"""Many writes at a time, with a bounded number waiting and progress told in the caller's thread."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from labelloop.service.store.base import Progress

Put = Callable[[str, bytes | Path], object]


def put_all(put: Put, items: Iterable[tuple[str, bytes | Path]], progress: Progress | None, *, threads: int) -> int:
    """Writes every item; the first error stops it and is raised once the writes under way have ended.

    Args:
        put: Writes one object; called in several threads.
        items: Read one by one, never more than twice `threads` ahead of what is written.
        progress: As in `Store.put_many`.
        threads: Writes at a time.

    Returns:
        How many objects were written.
    """
    done = size = 0
    waiting: deque[tuple[Future[object], int]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="store") as pool:
        try:
            for key, data in items:
                if len(waiting) >= 2 * threads:
                    done, size = _finish(waiting, done, size, progress)
                length = data.stat().st_size if isinstance(data, Path) else len(data)
                waiting.append((pool.submit(put, key, data), length))
            while waiting:
                done, size = _finish(waiting, done, size, progress)
        except BaseException:
            for future, _ in waiting:
                future.cancel()
            raise
    return done


def _finish(
    waiting: deque[tuple[Future[object], int]], done: int, size: int, progress: Progress | None
) -> tuple[int, int]:
    future, length = waiting.popleft()
    future.result()
    if progress is not None:
        progress(done + 1, size + length)
    return done + 1, size + length
