"""Owns the way from tasks to predictions: photos prepared in threads, run through the detector, written as results."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy.typing as npt
import structlog

from labelloop.service.errors import Busy
from labelloop.service.media import MediaError, Photo
from labelloop.service.memory_budget import Abandoned, never
from ml_backend.detection.detections import Detections
from ml_backend.detection.preprocess import Fit, Prepared, prepare
from ml_backend.inference.detector import Detector
from ml_backend.inference.slicing import Slices, detect_sliced
from ml_backend.predict.label_mapping import Target
from ml_backend.predict.protocol import Prediction, ProjectOptions, Unanswered
from ml_backend.predict.results import ImageResult, TargetThresholds, aims_of, floor_of, to_label_studio_results
from ml_backend.predict.task_score import NEUTRAL, photo_score

log = structlog.get_logger(__name__)

PREPARERS = 4
"""Threads of one request that fetch and decode photos. Each request has its own, so that a slow host behind one batch
does not keep an annotator's single task waiting."""

DEFAULTS = ProjectOptions()
"""A project that asked for nothing."""

BUDGET_S = 90.0
"""Time for one request: Label Studio drops the whole answer after 100 s."""

Made = TypeVar("Made")
Done = TypeVar("Done")

Skipped = Callable[[str], None]
"""Told the code of the error for each photo that could not be used."""


class Photos(Protocol):
    """Where photos come from: `labelloop.service.media.Media`."""

    def photo(
        self,
        url: str,
        *,
        task_id: int | None = None,
        max_side: int | None = None,
        abandoned: Callable[[], bool] = never,
    ) -> Photo:
        """The decoded photo. Raises `MediaError`; `Busy` and `Abandoned` where it waits for memory."""


@dataclass(frozen=True)
class DetectionObserver:
    """Somebody who wants to see the detections themselves, not only what becomes a result.

    Attributes:
        floor: Lowest score that is looked at.
        show: Told the place of the task in the request, what was found on one of its photos, and its width and height.
    """

    floor: float
    show: Callable[[int, Detections, tuple[int, int]], None]


@dataclass(frozen=True)
class ImageRequest:
    """One photo of one task: the `item`-th of its list, or the only one (None), for these aims."""

    task: int
    url: Any
    item: int | None
    aims: tuple[TargetThresholds, ...]


@dataclass(frozen=True)
class _ImageDetections:
    """A photo on which everything was looked for, and its size in pixels."""

    shot: ImageRequest
    found: Detections
    width: int
    height: int


@dataclass
class _Entry:
    """What is known of one task so far."""

    task_id: int | None
    results: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[tuple[float, float]] = field(default_factory=list)
    late: bool = False
    looked: int = 0
    failed: str = ""


@dataclass(frozen=True)
class _Job:
    """What one request asks for, and whether somebody still waits for it."""

    shots: Sequence[ImageRequest]
    entries: Sequence[_Entry]
    deadline: float
    abandoned: Callable[[], bool]
    ended: threading.Event = field(default_factory=threading.Event)

    def is_over(self) -> bool:
        return self.ended.is_set() or self.abandoned()


class Predictor:
    """Predicts tasks with one detector."""

    def __init__(
        self,
        photos: Photos,
        *,
        score_threshold: float,
        skipped: Skipped = lambda _: None,
        budget_s: float = BUDGET_S,
        watch: DetectionObserver | None = None,
    ) -> None:
        """Keeps what all requests share.

        Args:
            photos: Where photos come from.
            score_threshold: Lowest score of a box that is shown, where neither project nor control says another.
            skipped: Told the code of the error for each photo that could not be used.
            budget_s: Seconds after which a request is answered with what there is.
            watch: Shown what was found on each photo, weak detections too.
        """
        self._photos = photos
        self._threshold = score_threshold
        self._skipped = skipped
        self._budget_s = budget_s
        self._watch = watch
        self._spare: deque[npt.NDArray[Any]] = deque(maxlen=PREPARERS)  # tensors that the engine is done with

    def predict(
        self,
        tasks: Sequence[dict[str, Any]],
        *,
        detector: Detector,
        targets: Sequence[Target],
        options: ProjectOptions = DEFAULTS,
        waited_s: float = 0.0,
        abandoned: Callable[[], bool] = never,
        unserved: Callable[[], str] = lambda: "No control of the project takes what the model gives.",
    ) -> list[Prediction | Unanswered]:
        """One entry a task, in the order of the tasks.

        A photo that cannot be had costs its own task its boxes, and no other; the reason is logged. Tasks of which no
        photo could be looked at are `Unanswered`, as are those that the time did not suffice for, and all where no
        control of the project takes what the model gives: Label Studio stores nothing of them. With a `Watch` the
        photos are looked at all the same.

        Args:
            tasks: As Label Studio sends them.
            detector: Makes the boxes.
            targets: Controls of the project that results go to.
            options: What the project asks for.
            waited_s: Seconds of the budget that are spent already.
            abandoned: Asked before each photo; True ends the work.
            unserved: Says why no control of the project gets anything; asked where none does.

        Raises:
            ModelBroken: The engine failed.
            Busy: Other requests decode so many pixels that there is no memory for these photos.
            Abandoned: The client has gone.
        """
        if self._watch is None and not any(target.labels or target.points for target in targets):
            reason = unserved()
            return [Unanswered(NEUTRAL, detector.version, reason) for _ in tasks]
        aims = aims_of(targets, detector.names.names, options, self._threshold)
        floor = floor_of(aims) if self._watch is None else min(floor_of(aims), self._watch.floor)
        entries = [_Entry(task_id=_task_id(task)) for task in tasks]
        deadline = time.monotonic() + self._budget_s - waited_s
        shots = [shot for index, task in enumerate(tasks) for shot in image_requests(index, task, aims)]
        job = _Job(shots, entries, deadline, abandoned)
        if options.slice:
            slices = Slices(options.slice, options.slice_overlap)
            looks = self._slice(job, detector, floor=floor, slices=slices)
        else:
            looks = self._look(job, detector, floor)
        for look in looks:
            shot, entry = look.shot, entries[look.shot.task]
            entry.looked += 1
            if self._watch is not None:
                self._watch.show(shot.task, look.found, (look.width, look.height))
            key = f"{detector.version} {entry.task_id} {shot.item}"
            results, candidates = to_label_studio_results(
                ImageResult(look.found, look.width, look.height, key, shot.item), shot.aims
            )
            entry.results += results
            entry.candidates += candidates
        return [_close(entry, detector.version) for entry in entries]

    def _look(self, job: _Job, detector: Detector, floor: float) -> Iterator[_ImageDetections]:
        """Whole photos in the order of the shots, at most `detector.batch` at a time."""
        spec = detector.spec
        # What is cropped to its middle needs more than the input's size of the longer side.
        side = max(spec.width, spec.height) * (2 if spec.placement == "crop" else 1)

        def make(photo: Photo) -> Prepared:
            return prepare(photo.image, spec, size=(photo.width, photo.height), into=self._take_spare())

        if detector.batch == 1:  # whoever made a photo ready looks at it too: the engine lets in as many as are of use

            def look(ready: Prepared) -> tuple[Fit, Detections]:
                seen = detector.detect([ready], floor=floor)[0]
                self._spare.append(ready.tensor)
                return ready.fit, seen

            for shot, (fit, seen) in self._prefetch(job, batch=1, max_side=side, make=make, then=look):
                yield _ImageDetections(shot, seen, fit.width, fit.height)
            return
        batch: list[tuple[ImageRequest, Prepared]] = []
        coming = self._prefetch(job, batch=detector.batch, max_side=side, make=make, then=_identity)
        for one in chain(coming, [None]):
            batch += [one] if one else []
            if batch and (one is None or len(batch) == detector.batch):
                found = detector.detect([prepared for _, prepared in batch], floor=floor)
                for (shot, prepared), seen in zip(batch, found, strict=True):
                    yield _ImageDetections(shot, seen, prepared.fit.width, prepared.fit.height)
                batch = []

    def _take_spare(self) -> npt.NDArray[Any] | None:
        try:
            return self._spare.pop()
        except IndexError:
            return None

    def _slice(self, job: _Job, detector: Detector, *, floor: float, slices: Slices) -> Iterator[_ImageDetections]:
        """Photos in the order of the shots, each whole and part by part.

        Each is decoded in full, looked at and let go by one thread: none holds a photo while it waits for another.
        """

        def look(photo: Photo) -> tuple[tuple[int, int], Detections]:
            size = photo.width, photo.height
            return size, detect_sliced(detector, photo.image, slices, floor=floor, size=size)

        for shot, (size, seen) in self._prefetch(job, batch=0, max_side=None, make=_identity, then=look):
            yield _ImageDetections(shot, seen, *size)

    def _prefetch(
        self,
        job: _Job,
        *,
        batch: int,
        max_side: int | None,
        make: Callable[[Photo], Made],
        then: Callable[[Made], Done],
    ) -> Iterator[tuple[ImageRequest, Done]]:
        """Photos made ready, in the order of the shots: what `make` fails at costs that photo, what `then` does, all.

        A window of a few photos beyond those at work is made ready ahead, no more: a request of any length stays within
        the same memory, and the engine seldom waits.
        """
        shots, entries = job.shots, job.entries
        if len(shots) == 1:
            done = self._make(shots[0], job, max_side, make, then)
            if done is not None:
                yield shots[0], done
            return
        waiting: deque[tuple[ImageRequest, Future[Done | None]]] = deque()
        window = PREPARERS + 2 * batch
        coming = iter(shots)
        pool = ThreadPoolExecutor(PREPARERS, thread_name_prefix="prepare")
        try:
            while True:
                while len(waiting) < window and (shot := next(coming, None)) is not None:
                    waiting.append((shot, pool.submit(self._make, shot, job, max_side, make, then)))
                if not waiting:
                    return
                shot, future = waiting.popleft()
                try:
                    done = future.result(timeout=_remaining_s(job.deadline))
                except FutureTimeout:
                    left = [shot, *(one for one, _ in waiting), *coming]
                    for one in left:
                        entries[one.task].late = True
                    log.warning("predict_out_of_time", photos_left=len(left), photos=len(shots))
                    return
                if done is not None:
                    yield shot, done
        finally:
            job.ended.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _make(
        self,
        shot: ImageRequest,
        job: _Job,
        max_side: int | None,
        make: Callable[[Photo], Made],
        then: Callable[[Made], Done],
    ) -> Done | None:
        entry = job.entries[shot.task]
        task_id = entry.task_id
        if job.is_over():
            raise Abandoned
        if not isinstance(shot.url, str) or not shot.url.strip():
            entry.failed = f"there is no image address but {type(shot.url).__name__}"
            self._skip(shot, task_id, "no_address", entry.failed)
            return None
        try:
            made = make(self._photos.photo(shot.url, task_id=task_id, max_side=max_side, abandoned=job.is_over))
        except (Busy, Abandoned):  # of the whole request
            raise
        except MediaError as error:
            entry.failed = str(error)
            self._skip(shot, task_id, error.code, entry.failed)
            return None
        except Exception as error:  # whatever a file can do to a decoder, it may not cost the other tasks theirs
            log.exception("photo_failed", task=task_id)
            entry.failed = type(error).__name__
            self._skip(shot, task_id, "unexpected", entry.failed)
            return None
        return then(made)

    def _skip(self, shot: ImageRequest, task_id: int | None, code: str, reason: str) -> None:
        self._skipped(code)
        keys = [aim.target.data_key for aim in shot.aims]
        log.warning("photo_skipped", task=task_id, data_key=keys[0], item=shot.item, code=code, reason=reason)


def _identity(one: Made) -> Made:
    return one


def _remaining_s(deadline: float) -> float:
    """Seconds left. Raises TimeoutError where none is: a photo that is ready is no use when the answer is late."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise FutureTimeout
    return left


def image_requests(index: int, task: dict[str, Any], aims: Sequence[TargetThresholds]) -> list[ImageRequest]:
    """The photos of a task that some target wants, each once.

    Args:
        index: The task's place in its request.
        task: As Label Studio sends it; data values are addresses, or lists of them.
        aims: Controls that results go to.
    """
    data = task.get("data")
    data = data if isinstance(data, dict) else {}
    keys: dict[str, list[TargetThresholds]] = {}
    for aim in aims:
        keys.setdefault(aim.target.data_key, []).append(aim)
    shots = []
    for key, wanted in keys.items():
        value = data.get(key)
        if isinstance(value, list):
            shots += [ImageRequest(index, url, item, tuple(wanted)) for item, url in enumerate(value)]
        else:
            shots.append(ImageRequest(index, value, None, tuple(wanted)))
    return shots


def _close(entry: _Entry, version: str) -> Prediction | Unanswered:
    if entry.late:
        return Unanswered(NEUTRAL, version, "There was no time left for this task; ask for fewer at once.")
    if not entry.looked:
        return Unanswered(NEUTRAL, version, f"No image of the task could be read: {entry.failed or 'it has none'}")
    return Prediction(entry.results, round(photo_score(entry.candidates), 4), version)


def _task_id(task: dict[str, Any]) -> int | None:
    given = task.get("id")
    return given if isinstance(given, int) else None
