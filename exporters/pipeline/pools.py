"""Convert work units of an export on the other cores of this machine, or on a Ray cluster."""

from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from exporters.errors import ExportError
from exporters.pipeline.scheduler import ConvertedUnit, WorkerConfig, WorkUnit, convert_unit
from labelloop.service.processes import process_pool
from labelloop.service.ray import ClusterFailed, join_cluster, leave_cluster, root_cause
from labelloop.service.system import available_cores

# What needs Ray.
RAY_PURPOSE = "An export over a cluster"
# Largest default number of processes; with more, reading the source is the bottleneck.
_MAX_WORKERS = 8
# Attempts per unit whose worker dies.
_ATTEMPTS = 3
_CLUSTER_FIX = (
    "`ray status` says what the cluster has. Every machine needs the same labelloop, and must reach the store: an"
    " s3:// address, or a folder that all of them share. No version was made: run the export again."
)


def default_workers() -> int:
    """Return the number of processes to start by default."""
    return min(available_cores(), _MAX_WORKERS)


class ProcessPool:
    """A pool of spawned processes: the parent may have threads and connections, so it is not forked."""

    def __init__(self, config: WorkerConfig, workers: int) -> None:
        self.workers = workers
        self._convert = partial(convert_unit, config)
        self._executor = process_pool(workers, "exporters.pipeline.scheduler")

    def submit(self, unit: WorkUnit) -> "Future[ConvertedUnit]":
        """See `exporters.pipeline.scheduler.Pool`."""
        with _worker_errors():
            return self._executor.submit(self._convert, unit)

    def result(self, submitted: "Future[ConvertedUnit]") -> ConvertedUnit:
        """See `exporters.pipeline.scheduler.Pool`.

        Raises:
            ExportError: a process ended, most often for lack of memory.
        """
        with _worker_errors():
            return submitted.result()

    def close(self) -> None:
        """See `exporters.pipeline.scheduler.Pool`. Units not yet started are cancelled."""
        self._executor.shutdown(cancel_futures=True)


class RayCluster:
    """Joins or starts a Ray cluster: see `labelloop.service.ray.join`."""

    def __init__(self, address: str, config: WorkerConfig, workers: int = 0) -> None:
        self._ray, self.workers = join_cluster(address, workers, RAY_PURPOSE)
        self._config = self._ray.put(config)
        self._convert: Any = self._ray.remote(num_cpus=1, max_retries=_ATTEMPTS - 1)(convert_unit)

    def submit(self, unit: WorkUnit) -> Any:
        """See `exporters.pipeline.scheduler.Pool`."""
        return self._convert.remote(self._config, unit.materialized())

    def result(self, submitted: Any) -> ConvertedUnit:
        """See `exporters.pipeline.scheduler.Pool`.

        Raises:
            ClusterFailed: the workers of the unit died, or it failed there, for example because the store cannot be
                written.
        """
        try:
            converted: ConvertedUnit = self._ray.get(submitted)
        except Exception as error:
            raise ClusterFailed(
                what="A worker of the cluster failed", reason=root_cause(error), fix=_CLUSTER_FIX
            ) from error
        return converted

    def close(self) -> None:
        """See `exporters.pipeline.scheduler.Pool`."""
        leave_cluster(self._ray)


@contextmanager
def _worker_errors() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise ExportError(
            "The export failed: one of its processes ended in the middle.",
            fix="Run it again; if memory is short, with --workers 1. No version was made; the last one is intact.",
            code="worker_lost",
        ) from error
