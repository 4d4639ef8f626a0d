"""Connect to a Ray cluster. Ray is the optional extra `[scale]`, imported only here."""

import os
from contextlib import suppress
from typing import Any

from labelloop.service.errors import LabelloopError, MissingExtra

# Instead of an address: start a cluster on this machine, which ends with the command.
LOCAL_CLUSTER = "local"


class ClusterFailed(LabelloopError):
    """The cluster cannot be joined, or a job on it failed."""

    code = "cluster_failed"
    status = 503
    message = "{what}: {reason}"
    fix = "Run `ray status` to see what the cluster has."


def import_ray(purpose: str) -> Any:
    """Return the `ray` module.

    Args:
        purpose: What needs it, for the message of `MissingExtra`.

    Raises:
        MissingExtra: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    try:
        import ray
    except ImportError:
        raise MissingExtra(what=purpose, extra="scale") from None
    return ray


def join_cluster(address: str, workers: int, purpose: str) -> tuple[Any, int]:
    """Connect to a cluster, or start a local one.

    Args:
        address: Ray address (`auto`, `ray://host:10001`, `host:6379`), or `LOCAL_CLUSTER`.
        workers: Maximum number of worker processes; 0: one per core of the cluster.
        purpose: What needs the cluster, for the message of `MissingExtra`.

    Returns:
        The `ray` module and the number of worker processes. Call `leave_cluster` at the end.

    Raises:
        MissingExtra: Ray is not installed.
        ClusterFailed: The cluster cannot be joined, or has no cores.
    """
    ray = import_ray(purpose)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == LOCAL_CLUSTER:
            ray.init(num_cpus=workers or None, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:
        raise ClusterFailed(what=f"The Ray cluster {address} cannot be joined", reason=root_cause(error)) from error
    cores = int(ray.cluster_resources().get("CPU", 0))
    if not cores:
        leave_cluster(ray)
        raise ClusterFailed(what=f"The Ray cluster {address} has no core", reason="no worker can be started")
    return ray, min(workers or cores, cores)


def leave_cluster(ray: Any) -> None:
    """Disconnect from the cluster; jobs started by this process end."""
    with suppress(Exception):
        ray.shutdown()


def root_cause(error: BaseException) -> str:
    """The last line of the underlying error (at most 300 characters), without Ray's traceback."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(cause).__name__
