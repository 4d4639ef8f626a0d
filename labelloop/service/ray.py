"""`join`: a Ray cluster, whatever is to be done on it. Ray is the extra `[scale]`, imported only here."""

import os
from contextlib import suppress
from typing import Any, ClassVar

from labelloop.service.errors import LabelloopError, MissingExtra

LOCAL = "local"
"""In place of an address: a cluster of this machine's cores alone, ended with the command."""


class ClusterFailed(LabelloopError):
    """The cluster cannot be joined, or gave up what it was asked to do."""

    code: ClassVar[str] = "cluster_failed"
    status: ClassVar[int] = 503

    def __init__(self, what: str, reason: str, *, fix: str = "`ray status` says what the cluster has.") -> None:
        super().__init__(f"{what}: {reason}", fix=fix)


def join(address: str, workers: int, purpose: str) -> tuple[Any, int]:
    """Join a cluster, or start one.

    Args:
        address: As Ray takes it: `auto`, `ray://host:10001`, `host:6379`; or `LOCAL`.
        workers: Processes at most; 0: one for every core that the cluster has.
        purpose: What it is for, for an error.

    Returns:
        Ray, and how many processes there are. `leave` it at the end.

    Raises:
        MissingExtra: Ray is not installed.
        ClusterFailed: It cannot be joined, or has no core.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    try:
        import ray
    except ImportError:
        raise MissingExtra(purpose, extra="scale") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == LOCAL:
            ray.init(num_cpus=workers or None, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:
        raise ClusterFailed(f"The Ray cluster {address} cannot be joined", first_line(error)) from error
    cores = int(ray.cluster_resources().get("CPU", 0))
    if not cores:
        leave(ray)
        raise ClusterFailed(f"The Ray cluster {address} has no core", "no worker can be started")
    return ray, min(workers or cores, cores)


def leave(ray: Any) -> None:
    """Leave the cluster; what runs there for us ends with that."""
    with suppress(Exception):
        ray.shutdown()


def first_line(error: BaseException) -> str:
    """What went wrong, without Ray's own account of where."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(cause).__name__
