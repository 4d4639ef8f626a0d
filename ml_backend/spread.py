"""Owns work in threads: a fit takes as many cores as there are, though each of its matrices is computed by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def each(work: Callable[[Given], Made], items: Iterable[Given]) -> list[Made]:
    """`work` of every item, in their order, a few at once. numpy leaves the interpreter free while it computes.

    Raises:
        Whatever the first item raises that fails.
    """
    waiting = list(items)
    threads = min(len(waiting), len(os.sched_getaffinity(0)))
    if threads < 2:
        return [work(one) for one in waiting]
    with ThreadPoolExecutor(threads, thread_name_prefix="fit") as pool:
        return list(pool.map(work, waiting))
