"""Pre-label over a Ray cluster: one session per worker, a bounded number of chunks in flight.

Every worker loads the served version from the store and fetches images itself; only tasks and predictions cross the
network. Needs the extra `[scale]`.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from labelloop.service.media import Media
from labelloop.service.ray import LOCAL_CLUSTER, ClusterFailed, join_cluster, leave_cluster, root_cause
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.bulk.prelabel import BUDGET_S, Chunk, ChunkResult, FailureRecorder
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor
from ml_backend.predict.protocol import ProjectOptions, read_config
from ml_backend.segmentation.box_segmenter import BoxSegmenter
from ml_backend.serving.activation import open_version

__all__ = ["CHUNKS_PER_WORKER", "LOCAL_CLUSTER", "ClusterFailed", "PrelabelCluster", "PrelabelWorker"]

# Chunks in flight per worker: the current one and the next. More would only wait in memory.
CHUNKS_PER_WORKER = 2

# Attempts per chunk if its worker dies.
ATTEMPTS = 3

_FIX = (
    "See `ray status`. Every machine needs the same labelloop, ONNX Runtime and Ray, and must reach Label Studio and"
    " the store. Imported predictions are kept: run the command again."
)


class PrelabelWorker:
    """One worker process on any machine: a session and the threads that fetch its images."""

    def __init__(self, settings: Settings, version: str, xml: str, options: ProjectOptions) -> None:
        """Load the version.

        Args:
            settings: Of the command; a worker on another machine creates the home folder at the same path.
            version: The version to load.
            xml: The project's label config.
            options: Options of the project's connection.
        """
        # The cluster assigns one core per worker.
        settings = settings.replace(inference_threads=1)
        self._detector = open_version(settings, version)[0]
        names = self._detector.names.names
        gives, points = self._detector.provides, self._detector.keypoint_names
        self._targets = find_targets(
            read_config(xml),
            names,
            provides=gives,
            keypoint_names=points,
            controls=options.controls,
            answers=self._detector.answers,
        )
        studio = Studio.from_settings(settings) if settings.label_studio_api_key else None
        self._recorder = FailureRecorder(Media(settings, studio))
        self._predictor = Predictor(
            self._recorder,
            score_threshold=settings.score_threshold,
            budget_s=BUDGET_S,
            segmenter=BoxSegmenter(settings),
        )
        self._options = options

    def predict(self, chunk: Chunk) -> ChunkResult:
        """Return the predictions of a chunk of tasks, and the images that could not be used."""
        entries = self._predictor.predict(chunk, detector=self._detector, targets=self._targets, options=self._options)
        return ChunkResult(chunk, tuple(entries), self._recorder.drain())


class PrelabelCluster:
    """The workers of one command. A context manager: leaving it ends the workers and a cluster started for them."""

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
        """Join the cluster, or start one, and have its workers load the version.

        Args:
            address: Ray address: `auto`, `ray://host:10001`, `host:6379`; or `LOCAL`.
            workers: Most sessions; 0: one per core of the cluster.
            settings: See `Looker`, as the rest.
            version: The version served to the project.
            xml: The project's label config.
            options: Options of the project's connection.

        Raises:
            MissingExtra: Ray is not installed.
            ClusterFailed: It cannot be joined, or has no core.
        """
        self._ray, self.workers = join_cluster(address, workers, "Pre-labelling over a cluster")
        remote: Any = self._ray.remote(num_cpus=1, max_restarts=ATTEMPTS - 1, max_task_retries=ATTEMPTS - 1)(
            PrelabelWorker
        )
        self._workers: list[Any] = [remote.remote(settings, version, xml, options) for _ in range(self.workers)]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()

    def close(self) -> None:
        """Leave the cluster, which ends its workers."""
        leave_cluster(self._ray)

    def predict_chunks(self, chunks: Iterator[Chunk]) -> Iterator[ChunkResult]:
        """Predict chunks on the workers, in order of completion; a chunk is taken only when a worker is free.

        Raises:
            ClusterFailed: A worker cannot open the version, or a chunk's workers died `ATTEMPTS` times.
        """
        in_flight: dict[Any, Any] = {}
        ready = [worker for _ in range(CHUNKS_PER_WORKER) for worker in self._workers]
        more = True
        while more or in_flight:
            while more and ready:
                chunk = next(chunks, None)
                if chunk is None:
                    more = False
                    break
                worker = ready.pop(0)
                in_flight[worker.predict.remote(chunk)] = worker
            if not in_flight:
                return
            [done], _ = self._ray.wait(list(in_flight), num_returns=1)
            ready.append(in_flight.pop(done))
            try:
                result: ChunkResult = self._ray.get(done)
            except Exception as error:
                raise ClusterFailed(
                    what="A worker of the cluster failed", reason=root_cause(error), fix=_FIX
                ) from error
            yield result
