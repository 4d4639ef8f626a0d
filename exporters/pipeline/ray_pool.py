"""`RayCluster`: convert work units of an export on a Ray cluster; shards go to the store, the manifest joins them."""

from typing import Any

from exporters.pipeline.scheduler import ConvertedUnit, WorkerConfig, WorkUnit, convert_unit
from labelloop.service.ray import ClusterFailed, join_cluster, leave_cluster, root_cause

# Attempts per unit whose worker dies.
_ATTEMPTS = 3
_FIX = (
    "`ray status` says what the cluster has. Every machine needs the same labelloop, and must reach the store: an"
    " s3:// address, or a folder that all of them share. No version was made: run the export again."
)


class RayCluster:
    """Joins or starts a Ray cluster: see `labelloop.service.ray.join`."""

    def __init__(self, address: str, config: WorkerConfig, workers: int = 0) -> None:
        self._ray, self.workers = join_cluster(address, workers, "An export over a cluster")
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
            raise ClusterFailed(what="A worker of the cluster failed", reason=root_cause(error), fix=_FIX) from error
        return converted

    def close(self) -> None:
        """See `exporters.pipeline.scheduler.Pool`."""
        leave_cluster(self._ray)
