"""Owns how a worker's memory goes back to the system: what photos took is not kept for ever."""

import ctypes

MMAP_FROM = 256 * 1024
"""Bytes from which a block is a mapping of its own, given back as soon as it is free."""

LARGE = 2 * 1024 * 1024
"""Bytes from which a block of a process that computes much is a mapping of its own."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc; see mallopt(3)


def give_memory_back() -> bool:
    """Keeps glibc from raising, after the first large photo, the size from which freed blocks go back to the system.

    Without it each thread that decodes keeps the memory of its largest photo: 300 MB a worker instead of 230 with
    the embedded model. Returns False where the C library has no such option; nothing but memory is lost then.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_FROM)) and bool(mallopt(_M_TRIM_THRESHOLD, MMAP_FROM))


def one_heap() -> bool:
    """Has glibc keep one heap for all threads: for a process that makes threads for each piece of work.

    Else each thread frees into a heap of its own, where what is left pins whole pages: a worker grew by 15 MB a fit.
    What is `LARGE` goes back to the system at once. To be called before the threads are made. Returns False where the C
    library has no such option.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_ARENA_MAX, 1)) and bool(mallopt(_M_MMAP_THRESHOLD, LARGE))


def trim_memory() -> bool:
    """Gives free memory back to the system now: for a process that computes much, then waits.

    There `give_memory_back` would be wrong: every matrix would be a new mapping, and a fit takes 1.8 times as long.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return False
    return bool(trim(0))
