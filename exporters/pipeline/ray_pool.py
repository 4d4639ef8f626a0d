"""`RayCluster`: pieces of an export converted on a Ray cluster; shards go to the store, the manifest joins them."""

from typing import Any

from exporters.pipeline.scheduler import ConvertedUnit, WorkerConfig, WorkUnit, convert_unit
from labelloop.service.ray import ClusterFailed, join_cluster, leave_cluster, root_cause

_ATTEMPTS = 3
"""Times that a piece is given out whose worker died."""
_FIX = (
    "`ray status` says what the cluster has. Every machine needs the same labelloop, and must reach the store: an"
    " s3:// address, or a folder that all of them share. No version was made: run the export again."
)


class RayCluster:
    """Joins a cluster, or starts one: see `labelloop.service.ray.join_cluster`."""

    def __init__(self, address: str, order: WorkerConfig, workers: int = 0) -> None:
        self._ray, self.workers = join_cluster(address, workers, "An export over a cluster")
        self._order = self._ray.put(order)
        self._convert: Any = self._ray.remote(num_cpus=1, max_retries=_ATTEMPTS - 1)(convert_unit)

    def submit(self, piece: WorkUnit) -> Any:
        """See `exporters.pipeline.scheduler.Pool`."""
        return self._convert.remote(self._order, piece.materialized())

    def result(self, submitted: Any) -> ConvertedUnit:
        """See `exporters.pipeline.scheduler.Pool`.

        Raises:
            ClusterFailed: The piece's workers died, or it failed there: the store cannot be written from there, say.
        """
        try:
            found: ConvertedUnit = self._ray.get(submitted)
        except Exception as error:
            raise ClusterFailed("A worker of the cluster failed", root_cause(error), fix=_FIX) from error
        return found

    def close(self) -> None:
        """See `exporters.pipeline.scheduler.Pool`."""
        leave_cluster(self._ray)
