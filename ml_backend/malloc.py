"""Tune glibc's malloc so that workers return freed memory to the system."""

import ctypes

# Bytes from which a block is allocated with mmap and returned when freed. Smaller ones hold common photos, as decoded
# for a network: as new mappings, their page faults took a third of the processor time of decoding.
MMAP_FROM = 4 * 1024 * 1024

# Free bytes at the end of an arena from which they are returned.
TRIM_FROM = 16 * 1024 * 1024

# Arenas of a worker of the ML backend: with one for each of its threads, each would keep free memory of its own.
ARENAS = 2

# The same threshold for a process that computes a lot.
LARGE = 2 * 1024 * 1024

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc; see mallopt(3)


def return_freed_memory() -> bool:
    """Fix glibc's mmap threshold, which otherwise grows after the first large image, and share two arenas.

    Without it each decoding thread keeps the memory of its largest image: 300 MB per worker instead of 210 MB with
    YOLOX-nano. Call this before any thread starts.

    Returns:
        False where the C library has no such option.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    options = {_M_ARENA_MAX: ARENAS, _M_MMAP_THRESHOLD: MMAP_FROM, _M_TRIM_THRESHOLD: TRIM_FROM}
    done = [mallopt(option, value) for option, value in options.items()]
    return all(done)


def use_single_arena() -> bool:
    """Use one malloc arena for all threads, in a process that starts threads for each job.

    With an arena per thread, fragments pin whole pages: a worker grew by 15 MB per training run. Blocks of at least
    `LARGE` bytes are returned when freed. Call this before any thread starts.

    Returns:
        False where the C library has no such option.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_ARENA_MAX, 1)) and bool(mallopt(_M_MMAP_THRESHOLD, LARGE))


def trim_memory() -> bool:
    """Return free memory to the system now, in a process that computes a lot and then waits.

    `return_freed_memory` does not fit there: every matrix would be a new mapping, and training takes 1.8 times as long.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return False
    return bool(trim(0))
