"""Owns pre-labelling over a Ray cluster: one session a worker, no more at work than workers take, the rest unchanged.

Every worker opens the served version by itself (from the store, by its checksum) and fetches photos by itself; tasks go
out and predictions come back. Needs the extra `[scale]`.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from labelloop.service.media import Media
from labelloop.service.ray import LOCAL, ClusterFailed, first_line, join, leave
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.bulk.prelabel import BUDGET_S, Chunk, Looked, Noting
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor
from ml_backend.predict.protocol import ProjectOptions, read_config
from ml_backend.serving.activation import open_version

__all__ = ["AHEAD", "LOCAL", "Cluster", "ClusterFailed", "Looker"]

AHEAD = 2
"""Chunks a worker has: the one at work, and the next. More would only wait in memory."""

ATTEMPTS = 3
"""Times that a chunk is given out whose worker died."""

_FIX = (
    "`ray status` says what the cluster has. Every machine needs the same labelloop, ONNX Runtime and Ray, and must"
    " reach Label Studio and the store. What was imported is kept: run the command again."
)


class Looker:
    """One worker: a session, and threads that fetch photos for it. Lives in a process of its own, on any machine."""

    def __init__(self, settings: Settings, version: str, xml: str, options: ProjectOptions) -> None:
        """Opens the version.

        Args:
            settings: Of the command; a worker on another machine makes the home folder of the same path there.
            version: What every prediction carries.
            xml: The project's label config.
            options: What the project asks for.
        """
        # Threads of ONNX Runtime are the cluster's to give: one core a worker.
        settings = settings.but(inference_threads=1)
        self._detector = open_version(settings, version)[0]
        names = self._detector.names.names
        gives, points = self._detector.gives, self._detector.points
        self._targets = find_targets(read_config(xml), names, gives=gives, points=points)
        studio = Studio.from_settings(settings) if settings.label_studio_api_key else None
        self._noting = Noting(Media(settings, studio))
        self._predictor = Predictor(self._noting, score_threshold=settings.score_threshold, budget_s=BUDGET_S)
        self._options = options

    def look(self, chunk: Chunk) -> Looked:
        """The predictions of some tasks, and the photos that could not be used."""
        entries = self._predictor.predict(chunk, detector=self._detector, targets=self._targets, options=self._options)
        return Looked(chunk, tuple(entries), self._noting.taken())


class Cluster:
    """The workers of one command. Use it as a context: it ends them, and a cluster of its own with them."""

    def __init__(
        self,
        address: str,
        *,
        workers: int,
        settings: Settings,
        version: str,
        xml: str,
        options: ProjectOptions,
    ) -> None:
        """Joins the cluster, or starts one, and has its workers open the version.

        Args:
            address: As Ray takes it: `auto`, `ray://host:10001`, `host:6379`; or `LOCAL`.
            workers: Sessions at most; 0: one for every core that the cluster has.
            settings: See `Looker`, as the rest.
            version: What is served to the project.
            xml: Its label config.
            options: What it asks for.

        Raises:
            MissingExtra: Ray is not installed.
            ClusterFailed: It cannot be joined, or has no core.
        """
        self._ray, self.workers = join(address, workers, "Pre-labelling over a cluster")
        remote: Any = self._ray.remote(num_cpus=1, max_restarts=ATTEMPTS - 1, max_task_retries=ATTEMPTS - 1)(Looker)
        self._lookers: list[Any] = [remote.remote(settings, version, xml, options) for _ in range(self.workers)]

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the workers."""
        self.close()

    def close(self) -> None:
        """Leaves the cluster; its workers end with that."""
        leave(self._ray)

    def look(self, chunks: Iterator[Chunk]) -> Iterator[Looked]:
        """Each chunk looked at by some worker, as they come; no chunk is taken before a worker can have it.

        Raises:
            ClusterFailed: A worker cannot open the version, or a chunk's workers died `ATTEMPTS` times.
        """
        at_work: dict[Any, Any] = {}
        ready = [looker for _ in range(AHEAD) for looker in self._lookers]
        more = True
        while more or at_work:
            while more and ready:
                chunk = next(chunks, None)
                if chunk is None:
                    more = False
                    break
                looker = ready.pop(0)
                at_work[looker.look.remote(chunk)] = looker
            if not at_work:
                return
            [done], _ = self._ray.wait(list(at_work), num_returns=1)
            ready.append(at_work.pop(done))
            try:
                looked: Looked = self._ray.get(done)
            except Exception as error:
                raise ClusterFailed("A worker of the cluster failed", first_line(error), fix=_FIX) from error
            yield looked
