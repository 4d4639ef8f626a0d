"""Predict tasks: prepare images in threads, run the detector, and write the detections as Label Studio results."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy.typing as npt
import structlog

from labelloop.labeling.studio.config import data_value
from labelloop.service.errors import Busy
from labelloop.service.media import DecodedImage, MediaError
from labelloop.service.memory_budget import Abandoned, MemoryBudget, never_abandoned
from ml_backend.detection.detections import Detections
from ml_backend.detection.masks import ObjectMask
from ml_backend.detection.preprocess import Prepared, RgbImage, prepare
from ml_backend.heads import HEADS
from ml_backend.heads.base import Head, ImagePrediction
from ml_backend.inference.detector import Detector
from ml_backend.inference.slicing import Slices, detect_sliced
from ml_backend.predict.label_mapping import Target
from ml_backend.predict.protocol import FailedPrediction, ProjectOptions, TaskPrediction
from ml_backend.predict.results import (
    ImageResult,
    TargetThresholds,
    score_floor,
    segmented_rows,
    target_thresholds,
    to_label_studio_results,
)
from ml_backend.predict.shapes import SEMANTIC, rectangle_of
from ml_backend.predict.task_score import NEUTRAL, task_score
from ml_backend.segmentation.box_segmenter import SEGMENT_SIDE, BoxSegmenter
from ml_backend.segmentation.pixel_head import PixelHead

# Heads that are applied after the masks of boxes.
AFTER_MASKS = ("region_labels", "image_labels")

# Memory per image pixel while a mask is written, and the budget where images do not come from `Media`.
MASK_BYTES, DRAWING_BYTES = 3, 512 << 20

log = structlog.get_logger(__name__)

# Batches of images that wait for others of their size.
WAITING_BATCHES = 2

# Threads per request that fetch and decode images. Each request has its own pool, so a slow host behind one batch
# does not delay an annotator's single task.
PREPARE_THREADS = 4

# Options of a project without extra params.
DEFAULT_OPTIONS = ProjectOptions()

# Seconds per request: Label Studio drops the whole response after 100 s.
BUDGET_S = 90.0

PreparedImage = TypeVar("PreparedImage")
Done = TypeVar("Done")

# Called with the error code of each image that cannot be used.
SkippedCallback = Callable[[str], None]


class ImageSource(Protocol):
    """Loads the images of tasks; implemented by `labelloop.service.media.Media`."""

    def photo(
        self,
        url: str,
        *,
        task_id: int | None = None,
        max_side: int | None = None,
        abandoned: Callable[[], bool] = never_abandoned,
    ) -> DecodedImage:
        """Return the decoded image. Raises `MediaError`; `Busy` or `Abandoned` while it waits for memory."""


@dataclass(frozen=True)
class DetectionObserver:
    """Callback that receives the raw detections.

    Attributes:
        floor: Minimum score of the detections passed to it.
        on_detections: Called with the index of the task in the request, the detections of one image, and its size as
            (width, height).
        on_prediction: Called likewise with what the version's heads predicted on the image.
    """

    floor: float
    on_detections: Callable[[int, Detections, tuple[int, int]], None]
    on_prediction: Callable[[int, ImagePrediction], None] = lambda _index, _prediction: None


@dataclass(frozen=True)
class ImageRequest:
    """One image of one task and the targets that want it: the `item`-th of a list, or the only one (None)."""

    task_index: int
    url: Any
    item: int | None
    targets: tuple[TargetThresholds, ...]


@dataclass(frozen=True)
class _ImageDetections:
    """The detections of one image, and its size in pixels."""

    request: ImageRequest
    detections: Detections
    width: int
    height: int
    box_masks: Mapping[int, ObjectMask] = field(default_factory=dict)
    prediction: ImagePrediction | None = None


@dataclass(frozen=True)
class _Decoded:
    """A prepared image, and its pixels where boxes on it are to be segmented, or a head needs them."""

    prepared: Prepared
    pixels: RgbImage | None


@dataclass
class _TaskResults:
    """Results of one task so far."""

    task_id: int | None
    results: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[tuple[float, float]] = field(default_factory=list)
    timed_out: bool = False
    images_predicted: int = 0
    error: str = ""


@dataclass(frozen=True)
class _Job:
    """The image requests of one call and their deadline; over when done or abandoned by the client."""

    requests: Sequence[ImageRequest]
    entries: Sequence[_TaskResults]
    deadline: float
    abandoned: Callable[[], bool]
    heads: Mapping[str, Head] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    ended: threading.Event = field(default_factory=threading.Event)

    def is_over(self) -> bool:
        return self.ended.is_set() or self.abandoned()

    @cached_property
    def is_segmented(self) -> bool:
        """Whether some target needs masks from boxes."""
        return any(target.target.is_segmented for request in self.requests for target in request.targets)

    @cached_property
    def keeps_pixels(self) -> bool:
        """Whether the decoded image is needed after the detector ran."""
        return self.is_segmented or any(HEADS[name].needs_pixels for name in self.heads)


class _Late:
    """Whether the time of a job ran out; remembers that it was seen."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self.seen = False

    def is_over(self) -> bool:
        self.seen = self.seen or time.monotonic() >= self._job.deadline
        return self.seen or self._job.is_over()


class Predictor:
    """Predicts tasks with one detector and a shared image source."""

    def __init__(
        self,
        images: ImageSource,
        *,
        score_threshold: float,
        on_skipped: SkippedCallback = lambda _: None,
        budget_s: float = BUDGET_S,
        observer: DetectionObserver | None = None,
        segmenter: BoxSegmenter | None = None,
    ) -> None:
        """Keep the settings that all requests share.

        Args:
            images: Image source.
            score_threshold: Minimum score of a shown box where neither project nor control sets one.
            on_skipped: Called with the error code of each image that cannot be used.
            budget_s: Seconds after which a request is answered with the results so far.
            observer: Receives the raw detections of each image, weak ones too.
            segmenter: Segments boxes for polygons and masks; None: the one included in labelloop.
        """
        self._images = images
        self._threshold = score_threshold
        self._skipped = on_skipped
        self._budget_s = budget_s
        self._observer = observer
        self._segmenter = segmenter or BoxSegmenter()
        # Masks share the memory budget of image decoding.
        self._memory: MemoryBudget = getattr(images, "budget", None) or MemoryBudget(DRAWING_BYTES)
        self._spare: deque[npt.NDArray[Any]] = deque(maxlen=PREPARE_THREADS)  # input tensors for reuse

    def predict(
        self,
        tasks: Sequence[dict[str, Any]],
        *,
        detector: Detector,
        targets: Sequence[Target],
        options: ProjectOptions = DEFAULT_OPTIONS,
        waited_s: float = 0.0,
        abandoned: Callable[[], bool] = never_abandoned,
        no_target_reason: Callable[[], str] = lambda: "No control of the project takes what the model gives.",
    ) -> list[TaskPrediction | FailedPrediction]:
        """Predict tasks; returns one entry per task, in the order of the tasks.

        An image that cannot be read leaves its own task without boxes; the reason is logged. A task is `Unanswered`
        where none of its images could be read, where the time ran out, or where no control of the project takes the
        model's output: Label Studio stores nothing for it. With an observer, images are run in the last case too.

        Args:
            tasks: As Label Studio sends them.
            detector: The model.
            targets: Controls of the project that results go to.
            options: Options of the project.
            waited_s: Seconds of the budget already spent.
            abandoned: Polled before each image; True cancels the request.
            no_target_reason: Returns why no control takes the model's output; called only in that case.

        Raises:
            ModelBroken: The engine failed.
            Busy: Other requests hold the memory for decoded images.
            Abandoned: The client disconnected.
        """
        if self._observer is None and not any(target.is_filled for target in targets):
            reason = no_target_reason()
            return [FailedPrediction(NEUTRAL, detector.version, reason) for _ in tasks]
        wanted_targets = target_thresholds(targets, detector.names.names, options, self._threshold)
        floor = (
            score_floor(wanted_targets)
            if self._observer is None
            else min(score_floor(wanted_targets), self._observer.floor)
        )
        entries = [_TaskResults(task_id=_task_id(task)) for task in tasks]
        deadline = time.monotonic() + self._budget_s - waited_s
        requests = [
            request for index, task in enumerate(tasks) for request in image_requests(index, task, wanted_targets)
        ]
        heads = {name: detector.heads[name] for name in HEADS if name in detector.heads}
        job = _Job(requests, entries, deadline, abandoned, heads, detector.names.names)
        slices = Slices(options.slice, options.slice_overlap) if options.slice else Slices(grid=detector.tiles)
        if options.slice or detector.tiles > 1:
            detected = self._detect_sliced(job, detector, floor=floor, slices=slices)
        else:
            detected = self._detect_whole(job, detector, floor)
        for image in detected:
            request, entry = image.request, entries[image.request.task_index]
            entry.images_predicted += 1
            if self._observer is not None:
                self._observer.on_detections(request.task_index, image.detections, (image.width, image.height))
                if image.prediction is not None:
                    self._observer.on_prediction(request.task_index, image.prediction)
            key = f"{detector.version} {entry.task_id} {request.item}"
            result = ImageResult(
                image.detections, image.width, image.height, key, request.item, image.box_masks, image.prediction
            )
            with self._drawing_lease(image, job):
                results, candidates = to_label_studio_results(result, request.targets)
            entry.results += results
            entry.candidates += candidates
        return [_response_of(entry, detector.version) for entry in entries]

    def _detect_whole(self, job: _Job, detector: Detector, floor: float) -> Iterator[_ImageDetections]:
        """Run whole images in the order of the requests, at most `detector.batch` per batch."""
        spec = detector.spec
        side = max(spec.decode_side, SEGMENT_SIDE) if job.keeps_pixels else spec.decode_side

        def make(photo: DecodedImage) -> _Decoded:
            size = photo.width, photo.height
            prepared = prepare(photo.pixels, detector.spec_for(*size), size=size, into=self._take_spare())
            return _Decoded(prepared, photo.pixels if job.keeps_pixels else None)

        def finish(request: ImageRequest, decoded: _Decoded, detections: Detections) -> _ImageDetections:
            fit = decoded.prepared.fit
            return self._with_heads(job, request, decoded.pixels, detections, (fit.width, fit.height))

        if detector.batch == 1:  # run in the thread that prepared the image; the engine limits its own concurrency

            def detect(request: ImageRequest, ready: _Decoded) -> _ImageDetections:
                detections = detector.detect([ready.prepared], floor=floor)[0]
                self._spare.append(ready.prepared.tensor)
                return finish(request, ready, detections)

            for _, image in self._prefetch(job, batch=1, max_side=side, make=make, then=detect):
                yield image
            return
        coming = self._prefetch(job, batch=detector.batch, max_side=side, make=make, then=lambda _, ready: ready)
        for request, decoded, detections in _in_batches(coming, detector, floor):
            yield finish(request, decoded, detections)

    def _with_heads(
        self,
        job: _Job,
        request: ImageRequest,
        pixels: RgbImage | None,
        detections: Detections,
        size: tuple[int, int],
    ) -> _ImageDetections:
        """Apply the version's heads: those that move points and angles, masks of boxes, then those that answer."""
        if not job.heads:
            return self._with_masks(job, request, pixels, detections, size)
        prediction = ImagePrediction(detections, job.names, *size, pixels=lambda: _required(pixels))
        order = list(job.heads)
        after = [name for name in order if name in AFTER_MASKS]
        for name in order:
            if name not in AFTER_MASKS:
                prediction = HEADS[name].apply(job.heads[name], prediction)
        image = self._with_masks(job, request, pixels, prediction.detections, size)
        for name in after:
            prediction = HEADS[name].apply(job.heads[name], prediction)
        return replace(image, detections=prediction.detections, prediction=prediction)

    def _with_masks(
        self,
        job: _Job,
        request: ImageRequest,
        pixels: RgbImage | None,
        detections: Detections,
        size: tuple[int, int],
    ) -> _ImageDetections:
        """Segment the boxes that some target draws from a mask."""
        rows = segmented_rows(detections, request.targets) if pixels is not None else []
        if pixels is None or not rows:
            return _ImageDetections(request, detections, *size)
        boxes = [rectangle_of(detections, row) for row in rows]
        late = _Late(job)
        segmented = self._segmenter.masks(pixels, boxes, size=size, is_over=late.is_over, head=_mask_head(job.heads))
        entry = job.entries[request.task_index]
        if late.seen:
            entry.timed_out = True
        if segmented.missing:
            log.warning(
                "box_masks_left_out", task=entry.task_id, item=request.item, objects=segmented.missing,
                of=len(rows), reason=segmented.reason or "they lie outside the image",
            )  # fmt: skip
        masks = {row: mask for row, mask in zip(rows, segmented.masks, strict=True) if mask is not None}
        return _ImageDetections(request, detections, *size, masks)

    def _drawing_lease(self, image: _ImageDetections, job: _Job) -> AbstractContextManager[Any]:
        """Hold the memory that writing the masks of an image takes."""
        targets = [target.target for target in image.request.targets]
        if not any(target.draws in {"Brush", "BitMask"} or target.source == SEMANTIC for target in targets):
            return nullcontext()
        weight = min(MASK_BYTES * image.width * image.height, self._memory.limit)
        return self._memory.lease(weight, abandoned=job.is_over)

    def _take_spare(self) -> npt.NDArray[Any] | None:
        try:
            return self._spare.pop()
        except IndexError:
            return None

    def _detect_sliced(
        self, job: _Job, detector: Detector, *, floor: float, slices: Slices
    ) -> Iterator[_ImageDetections]:
        """Run images whole and tile by tile, in the order of the requests.

        One thread decodes, runs and releases each image, so no decoded image waits for another.
        """

        def detect(request: ImageRequest, photo: DecodedImage) -> _ImageDetections:
            size = photo.width, photo.height
            detections = detect_sliced(detector, photo.pixels, slices, floor=floor, size=size)
            return self._with_heads(job, request, photo.pixels if job.keeps_pixels else None, detections, size)

        for _, image in self._prefetch(job, batch=0, max_side=None, make=_identity, then=detect):
            yield image

    def _prefetch(
        self,
        job: _Job,
        *,
        batch: int,
        max_side: int | None,
        make: Callable[[DecodedImage], PreparedImage],
        then: Callable[[ImageRequest, PreparedImage], Done],
    ) -> Iterator[tuple[ImageRequest, Done]]:
        """Prepare images ahead, in order; an error in `make` skips that image, an error in `then` is raised.

        The prefetch window holds a few images more than the batch in progress, so memory does not grow with the length
        of the request and the engine rarely waits.
        """
        requests, entries = job.requests, job.entries
        if len(requests) == 1:
            done = self._prepare(requests[0], job, max_side, make, then)
            if done is not None:
                yield requests[0], done
            return
        waiting: deque[tuple[ImageRequest, Future[Done | None]]] = deque()
        window = PREPARE_THREADS + 2 * batch
        remaining = iter(requests)
        pool = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="prepare")
        try:
            while True:
                while len(waiting) < window and (request := next(remaining, None)) is not None:
                    waiting.append((request, pool.submit(self._prepare, request, job, max_side, make, then)))
                if not waiting:
                    return
                request, future = waiting.popleft()
                try:
                    done = future.result(timeout=_remaining_s(job.deadline))
                except FutureTimeout:
                    late = [request, *(waiting_request for waiting_request, _ in waiting), *remaining]
                    for late_request in late:
                        entries[late_request.task_index].timed_out = True
                    log.warning("predict_out_of_time", photos_left=len(late), photos=len(requests))
                    return
                if done is not None:
                    yield request, done
        finally:
            job.ended.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(
        self,
        request: ImageRequest,
        job: _Job,
        max_side: int | None,
        make: Callable[[DecodedImage], PreparedImage],
        then: Callable[[ImageRequest, PreparedImage], Done],
    ) -> Done | None:
        entry = job.entries[request.task_index]
        task_id = entry.task_id
        if job.is_over():
            raise Abandoned
        if not isinstance(request.url, str) or not request.url.strip():
            entry.error = f"the image address is a value of type {type(request.url).__name__}"
            self._skip(request, task_id, "no_address", entry.error)
            return None
        try:
            prepared = make(self._images.photo(request.url, task_id=task_id, max_side=max_side, abandoned=job.is_over))
        except (Busy, Abandoned):  # these end the whole request
            raise
        except MediaError as error:
            entry.error = str(error)
            self._skip(request, task_id, error.code, entry.error)
            return None
        except Exception as error:  # a file that breaks a decoder must not fail the other tasks
            log.exception("photo_failed", task=task_id)
            entry.error = type(error).__name__
            self._skip(request, task_id, "unexpected", entry.error)
            return None
        return then(request, prepared)

    def _skip(self, request: ImageRequest, task_id: int | None, code: str, reason: str) -> None:
        self._skipped(code)
        keys = [target.target.data_key for target in request.targets]
        log.warning("photo_skipped", task=task_id, data_key=keys[0], item=request.item, code=code, reason=reason)


def _in_batches(
    coming: Iterator[tuple[ImageRequest, _Decoded]], detector: Detector, floor: float
) -> Iterator[tuple[ImageRequest, _Decoded, Detections]]:
    """Run images in batches of one size each, as full as they get; yields them in their order.

    At most `WAITING_BATCHES` batches of images wait for others of their size, or for an earlier image.
    """
    waiting: dict[tuple[int, ...], list[int]] = {}  # size of the input -> numbers of images
    images: dict[int, tuple[ImageRequest, _Decoded]] = {}
    detections: dict[int, Detections] = {}
    first = 0

    def run(size: tuple[int, ...]) -> None:
        numbers = waiting.pop(size)
        prepared = [images[number][1].prepared for number in numbers]
        detections.update(zip(numbers, detector.detect(prepared, floor=floor), strict=True))

    for number, item in enumerate(chain(coming, [None])):
        if item is None:
            for size in list(waiting):
                run(size)
        else:
            images[number] = item
            size = item[1].prepared.tensor.shape
            waiting.setdefault(size, []).append(number)
            if len(waiting[size]) == detector.batch:
                run(size)
            if len(images) >= WAITING_BATCHES * detector.batch and first not in detections:
                run(min(waiting, key=lambda waiting_size: waiting[waiting_size][0]))  # of the image that comes first
        while first in detections:
            yield (*images.pop(first), detections.pop(first))
            first += 1


def _mask_head(heads: Mapping[str, Head]) -> PixelHead | None:
    learned: Any = heads.get("masks")
    head: PixelHead | None = learned
    return head


def _required(pixels: RgbImage | None) -> RgbImage:
    if pixels is None:
        raise ValueError("a head needs pixels, and its kind does not say so (`HeadKind.needs_pixels`)")
    return pixels


def _identity(value: PreparedImage) -> PreparedImage:
    return value


def _remaining_s(deadline: float) -> float:
    """Seconds left. Raises `TimeoutError` after the deadline, even if the next image is ready."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise FutureTimeout
    return left


def image_requests(index: int, task: dict[str, Any], targets: Sequence[TargetThresholds]) -> list[ImageRequest]:
    """Return the images of a task that at least one target uses, each once.

    Args:
        index: Index of the task in its request.
        task: As Label Studio sends it; data values, also under a path, are URLs or lists of URLs.
        targets: Targets that results go to.
    """
    data = task.get("data")
    data = data if isinstance(data, dict) else {}
    keys: dict[str, list[TargetThresholds]] = {}
    for target in targets:
        keys.setdefault(target.target.data_key, []).append(target)
    requests = []
    for key, key_targets in keys.items():
        value = data_value(data, key)
        if isinstance(value, list):
            requests += [ImageRequest(index, url, item, tuple(key_targets)) for item, url in enumerate(value)]
        else:
            requests.append(ImageRequest(index, value, None, tuple(key_targets)))
    return requests


def _response_of(entry: _TaskResults, version: str) -> TaskPrediction | FailedPrediction:
    if entry.timed_out:
        return FailedPrediction(NEUTRAL, version, "The time for this request ran out; select fewer tasks at once.")
    if not entry.images_predicted:
        return FailedPrediction(NEUTRAL, version, f"No image of the task could be read: {entry.error or 'it has none'}")
    return TaskPrediction(entry.results, round(task_score(entry.candidates), 4), version)


def _task_id(task: dict[str, Any]) -> int | None:
    task_id = task.get("id")
    return task_id if isinstance(task_id, int) else None
