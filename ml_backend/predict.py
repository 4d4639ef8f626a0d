"""Owns the way from tasks to predictions: photos prepared in threads, run through the detector, written as results."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from labelloop.labeling.geometry import Rectangle
from labelloop.labeling.regions import detection_result
from labelloop.service.media import MediaError, Photo
from ml_backend.detections import Detections
from ml_backend.detector import Detector
from ml_backend.mapping import Target
from ml_backend.preprocess import Fit, InputSpec, Prepared, prepare
from ml_backend.protocol import Prediction, Unanswered
from ml_backend.scoring import NEUTRAL, near_miss_floor, photo_score

log = structlog.get_logger(__name__)

PREPARERS = 4
"""Threads of one request that fetch and decode photos. Each request has its own, so that a slow host behind one batch
does not keep an annotator's single task waiting."""

BUDGET_S = 90.0
"""Time for one request: Label Studio drops the whole answer after 100 s."""

Skipped = Callable[[str], None]
"""Told the code of the error for each photo that could not be used."""


class Photos(Protocol):
    """Where photos come from: `labelloop.service.media.Media`."""

    def photo(self, url: str, *, task_id: int | None = None, max_side: int | None = None) -> Photo:
        """The decoded photo."""


@dataclass(frozen=True)
class Shot:
    """One photo of one task: the `item`-th of its list, or the only one (None), for these targets."""

    task: int
    url: Any
    item: int | None
    targets: tuple[Target, ...]


@dataclass
class _Entry:
    """What is known of one task so far."""

    task_id: int | None
    results: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[tuple[float, float]] = field(default_factory=list)
    late: bool = False


class Predictor:
    """Predicts tasks with one detector."""

    def __init__(
        self, photos: Photos, *, score_threshold: float, skipped: Skipped = lambda _: None, budget_s: float = BUDGET_S
    ) -> None:
        """Keeps what all requests share.

        Args:
            photos: Where photos come from.
            score_threshold: Lowest score of a box that is shown, where neither project nor control says another.
            skipped: Told the code of the error for each photo that could not be used.
            budget_s: Seconds after which a request is answered with what there is.
        """
        self._photos = photos
        self._threshold = score_threshold
        self._skipped = skipped
        self._budget_s = budget_s

    def predict(
        self,
        tasks: Sequence[dict[str, Any]],
        *,
        detector: Detector,
        targets: Sequence[Target],
        score_threshold: float | None = None,
    ) -> list[Prediction | Unanswered]:
        """One entry a task, in the order of the tasks.

        A photo that cannot be had costs its own task its boxes, and no other; the reason is logged. Tasks that the
        time did not suffice for are `Unanswered`.

        Args:
            tasks: As Label Studio sends them.
            detector: Makes the boxes.
            targets: Controls of the project that boxes go to.
            score_threshold: The project's threshold; None: the backend's.

        Raises:
            ModelBroken: The engine failed.
        """
        threshold = self._threshold if score_threshold is None else score_threshold
        thresholds = {target.control.name: target.threshold(threshold) for target in targets}
        floor = min((near_miss_floor(one) for one in thresholds.values()), default=1.0)
        entries = [_Entry(task_id=_task_id(task)) for task in tasks]
        deadline = time.monotonic() + self._budget_s
        shots = [shot for index, task in enumerate(tasks) for shot in find_shots(index, task, targets)]
        for batch in self._batches(shots, entries, detector, deadline):
            found = detector.detect([prepared for _, prepared in batch], floor=floor)
            for (shot, prepared), one in zip(batch, found, strict=True):
                _add(entries[shot.task], shot, prepared.fit, one, thresholds=thresholds, version=detector.version)
        return [_close(entry, detector.version) for entry in entries]

    def _batches(
        self, shots: Sequence[Shot], entries: Sequence[_Entry], detector: Detector, deadline: float
    ) -> Iterator[list[tuple[Shot, Prepared]]]:
        """Prepared photos in the order of the shots, at most `detector.batch` at a time.

        A window of a few photos beyond those at work is prepared ahead, no more: a request of any length stays within
        the same memory, and the engine seldom waits.
        """
        batch: list[tuple[Shot, Prepared]] = []
        for shot, prepared in self._prepared(shots, entries, detector, deadline):
            batch.append((shot, prepared))
            if len(batch) == detector.batch:
                yield batch
                batch = []
        if batch:
            yield batch

    def _prepared(
        self, shots: Sequence[Shot], entries: Sequence[_Entry], detector: Detector, deadline: float
    ) -> Iterator[tuple[Shot, Prepared]]:
        if len(shots) == 1:
            prepared = self._prepare(shots[0], entries[shots[0].task].task_id, detector.spec)
            if prepared is not None:
                yield shots[0], prepared
            return
        waiting: deque[tuple[Shot, Future[Prepared | None]]] = deque()
        window = PREPARERS + 2 * detector.batch
        coming = iter(shots)
        pool = ThreadPoolExecutor(PREPARERS, thread_name_prefix="prepare")
        try:
            while True:
                while len(waiting) < window and (shot := next(coming, None)) is not None:
                    future = pool.submit(self._prepare, shot, entries[shot.task].task_id, detector.spec)
                    waiting.append((shot, future))
                if not waiting:
                    return
                shot, future = waiting.popleft()
                try:
                    prepared = future.result(timeout=_left(deadline))
                except FutureTimeout:
                    left = [shot, *(one for one, _ in waiting), *coming]
                    for one in left:
                        entries[one.task].late = True
                    log.warning("predict_out_of_time", photos_left=len(left), photos=len(shots))
                    return
                if prepared is not None:
                    yield shot, prepared
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, shot: Shot, task_id: int | None, spec: InputSpec) -> Prepared | None:
        if not isinstance(shot.url, str) or not shot.url.strip():
            self._skip(shot, task_id, "no_address", f"there is no image address but {type(shot.url).__name__}")
            return None
        try:
            photo = self._photos.photo(shot.url, task_id=task_id, max_side=max(spec.width, spec.height))
            return prepare(photo.image, spec, size=(photo.width, photo.height))
        except MediaError as error:
            self._skip(shot, task_id, error.code, str(error))
        except Exception as error:  # whatever a file can do to a decoder, it may not cost the other tasks theirs
            log.exception("photo_failed", task=task_id)
            self._skip(shot, task_id, "unexpected", type(error).__name__)
        return None

    def _skip(self, shot: Shot, task_id: int | None, code: str, reason: str) -> None:
        self._skipped(code)
        keys = [target.data_key for target in shot.targets]
        log.warning("photo_skipped", task=task_id, data_key=keys[0], item=shot.item, code=code, reason=reason)


def _left(deadline: float) -> float:
    """Seconds left. Raises TimeoutError where none is: a photo that is ready is no use when the answer is late."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise FutureTimeout
    return left


def find_shots(index: int, task: dict[str, Any], targets: Sequence[Target]) -> list[Shot]:
    """The photos of a task that some target wants, each once.

    Args:
        index: The task's place in its request.
        task: As Label Studio sends it; data values are addresses, or lists of them.
        targets: Controls that boxes go to.
    """
    data = task.get("data")
    data = data if isinstance(data, dict) else {}
    keys: dict[str, list[Target]] = {}
    for target in targets:
        keys.setdefault(target.data_key, []).append(target)
    shots = []
    for key, wanted in keys.items():
        value = data.get(key)
        if isinstance(value, list):
            shots += [Shot(index, url, item, tuple(wanted)) for item, url in enumerate(value)]
        else:
            shots.append(Shot(index, value, None, tuple(wanted)))
    return shots


def _add(
    entry: _Entry, shot: Shot, fit: Fit, found: Detections, *, thresholds: Mapping[str, float], version: str
) -> None:
    """Adds the boxes of one photo to its task: those above a control's threshold as results, all to its score."""
    for target in shot.targets:
        threshold = thresholds[target.control.name]
        least = near_miss_floor(threshold)
        for place, (box, score, class_) in enumerate(
            zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
        ):
            label = target.labels.get(class_)
            if label is None or score < least:
                continue
            entry.candidates.append((score, threshold))
            if score >= threshold:
                region = _region_id(version, entry.task_id, shot.item, target, place)
                entry.results += _results(target, label, box, fit=fit, score=score, region=region, item=shot.item)


def _results(
    target: Target, label: str, box: list[float], *, fit: Fit, score: float, region: str, item: int | None
) -> list[dict[str, Any]]:
    """One region: one result, or two of one id where labels and shape are separate controls."""
    left, top, right, bottom = (round(side, 2) for side in box)
    drawn = detection_result(
        Rectangle(left, top, right - left, bottom - top),
        None if target.shape else label,
        control=target.shape or target.control,
        width=fit.width,
        height=fit.height,
        score=round(score, 4),
        id=region,
        item_index=item,
    )
    drawn["to_name"] = target.to_name  # a control may serve several images
    if target.shape is None:
        return [drawn]
    value = {**drawn["value"], "labels": [label]}
    return [drawn, {**drawn, "from_name": target.control.name, "type": target.control.type, "value": value}]


def _region_id(version: str, task_id: int | None, item: int | None, target: Target, place: int) -> str:
    """The same for the same prediction, so that asking twice gives the same JSON."""
    key = f"{version} {task_id} {item} {target.control.name} {target.to_name} {place}"
    return hashlib.blake2s(key.encode(), digest_size=5).hexdigest()


def _close(entry: _Entry, version: str) -> Prediction | Unanswered:
    if entry.late:
        return Unanswered(NEUTRAL, version, "There was no time left for this task; ask for fewer at once.")
    return Prediction(entry.results, round(photo_score(entry.candidates), 4), version)


def _task_id(task: dict[str, Any]) -> int | None:
    given = task.get("id")
    return given if isinstance(given, int) else None
