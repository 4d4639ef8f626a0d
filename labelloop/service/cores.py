"""How many cores a process may use."""

import os


def cores() -> int:
    """Those that the system gives this process, which a container may hold to a few; where it does not say, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
