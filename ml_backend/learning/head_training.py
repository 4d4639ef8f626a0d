"""Fit the heads of a version: what is learned in addition to boxes, such as answers, masks and key points.

Each kind of `ml_backend.heads` is fitted, judged and published on its own: a refused head leaves that of the served
version in place, and an error in one kind leaves the others untouched.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import structlog

from labelloop.service.media import MediaError
from ml_backend.errors import ModelError
from ml_backend.heads import HEADS
from ml_backend.heads.base import FitInput, Head, HeadExample, HeadResult, Pixels
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.context import LearningContext
from ml_backend.learning.features import boxes_on_image
from ml_backend.learning.store.runs import TITLES, HeadMetrics
from ml_backend.learning.training_set import RunInput, sample_images
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.parallel import parallel_map, single_threaded_blas
from ml_backend.training.region_features import region_embeddings

# Images with answers that heads are fitted on; of more, a sample.
MAX_ANSWERED = 1000

# Longer side in pixels of the images that heads decode.
MAX_SIDE = 1024

# Images that cannot be loaded any more after which a kind of head is given up.
MAX_LOST = 50

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class HeadOutcome:
    """What became of the heads in a training run.

    Attributes:
        served: The heads of the version served so far, by kind.
        results: Result of each kind that the project has something for.
        dropped: Kinds of `served` whose training annotations are all gone.
        examples: Number of images that heads were fitted on.
    """

    served: Mapping[str, Head] = field(default_factory=dict)
    results: Mapping[str, HeadResult] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    examples: int = 0

    @property
    def passed(self) -> dict[str, Head]:
        """The candidates that may be served."""
        return {name: result.head for name, result in self.results.items() if result.passed and result.head is not None}

    @property
    def next(self) -> dict[str, Head]:
        """The heads of the next version: those that passed, else those served so far."""
        still_served = {name: head for name, head in self.served.items() if name not in self.dropped}
        return {**still_served, **self.passed}

    @property
    def changed(self) -> bool:
        """Whether the next version has other heads than the served one."""
        return bool(self.passed or self.dropped)

    def refused(self, reason: str) -> "HeadOutcome":
        """Return the outcome with every candidate refused for a reason."""
        results = {name: replace(result, passed=False, reason=reason) for name, result in self.results.items()}
        return replace(self, results=results, dropped=frozenset())

    @property
    def reasons(self) -> list[str]:
        """The reason of each verdict, in words."""
        return [f"{TITLES.get(name, name)}: {result.reason}" for name, result in self.results.items()]

    @property
    def metrics(self) -> dict[str, HeadMetrics]:
        """The metrics of each kind, as stored with the run."""
        return {
            name: HeadMetrics(
                metric=result.metric, value=_rounded(result.value), parent=_rounded(result.parent),
                passed=result.passed and result.head is not None, reason=result.reason, judged_by=result.judged_by,
            )
            for name, result in self.results.items()
        }  # fmt: skip


class HeadTrainer:
    """Fits the heads of training runs."""

    def __init__(self, context: LearningContext) -> None:
        """Open nothing yet."""
        self._context = context

    def fit(self, inputs: RunInput, backbone: FrozenBackbone, *, names: tuple[str, ...]) -> HeadOutcome:
        """Fit and judge every kind of head that the project has something for.

        Args:
            inputs: Inputs of the run.
            backbone: Gives the features.
            names: Class names of the version.
        """
        # Heads on the features of another base mean nothing on this one.
        same_base = self._context.base_models.has_base(inputs.served)
        served = self._context.base_models.heads(inputs.served.version) if same_base else {}
        training = [(task, photo) for task, _, photos in inputs.training for photo in photos if photo.is_labelled]
        if not HEADS or not (training or served):
            return HeadOutcome(served)
        drawn_at = self._context.training_data.drawn_at(inputs.project)
        training.sort(key=lambda pair: (drawn_at.get(pair[0], ""), pair[0]))
        held_out = [(task, photo) for task, _, photos in inputs.held_out for photo in photos if photo.is_labelled]
        examples = self._examples(inputs, backbone, _sample(training))
        held_out_examples = self._examples(inputs, backbone, _sample(held_out))
        results: dict[str, HeadResult] = {}
        with single_threaded_blas():
            for name in HEADS:
                fit_input = FitInput(
                    inputs.config, examples, held_out_examples, names, served.get(name), inputs.policy.tolerance
                )
                try:
                    result = self._not_refitted(name, examples) or _fit_without_lost_images(name, fit_input)
                except Exception as error:  # an error in one kind must not stop the others
                    log.exception("head_not_fitted", project=inputs.project, head=name)
                    result = HeadResult(None, "", None, None, False, f"{type(error).__name__}: {error}", "nothing")
                if result is not None:
                    results[name] = result
        withdrawn = bool(served) and bool(self._context.training_data.count_withdrawn(inputs.project))
        dropped = (
            frozenset(name for name in served if name in HEADS and name not in results) if withdrawn else frozenset()
        )
        return HeadOutcome(served, results, dropped, len(examples))

    def _not_refitted(self, name: str, examples: Sequence[HeadExample]) -> HeadResult | None:
        """The result for masks where a segmenter of the user's own draws them: it is not refitted."""
        if (
            name != "masks"
            or self._context.settings.smart_encoder is None
            or not any(any(item.masks) for item in examples)
        ):
            return None
        reason = "the SAM-family export that LABELLOOP_SMART_ENCODER names is not refitted; the included network is"
        return HeadResult(None, "mask IoU", None, None, False, reason, "nothing")

    def _examples(
        self, inputs: RunInput, backbone: FrozenBackbone, images: Sequence[tuple[int, LabelledImage]]
    ) -> list[HeadExample]:
        """Return the images with their features; images that cannot be loaded are left out."""

        def example(pair: tuple[int, LabelledImage]) -> HeadExample | None:
            task, image = pair
            try:
                return self._example(backbone, task, image)
            except (MediaError, ModelError) as error:
                log.warning("photo_not_learned_from", project=inputs.project, task=task, reason=str(error))
                return None

        return [built for built in parallel_map(example, images) if built is not None]

    def _example(self, backbone: FrozenBackbone, task: int, image: LabelledImage) -> HeadExample:
        features = self._context.features
        if image.labels and backbone.levels:
            candidates = features.features(backbone, image.url, task=task)
            width, height, of_image = candidates.fit.width, candidates.fit.height, candidates.image_features
            boxes = boxes_on_image(image, width, height)
            embeddings = region_embeddings(candidates, boxes)
        else:
            of_image, width, height = features.image_features(backbone, image.url, task=task)
            boxes = boxes_on_image(image, width, height)
            embeddings = np.zeros((len(boxes), 0), np.float32)
        across = width / image.width if image.width else 1.0
        down = height / image.height if image.height else 1.0
        return HeadExample(
            task=task, url=image.url, width=width, height=height, boxes=boxes, labels=image.labels,
            embeddings=embeddings, image_features=None if of_image is None else np.asarray(of_image, np.float32),
            pixels=partial(self._pixels, image.url, task), complete=image.complete, masks=image.masks,
            rotated=tuple(
                (box[0] * across, box[1] * down, box[2] * across, box[3] * down, box[4]) if box else ()
                for box in image.rotated
            ),
            keypoints=tuple((label, x * across, y * down, index) for label, x, y, index in image.keypoints),
            choices=image.choices, region_choices=image.region_choices,
        )  # fmt: skip

    def _pixels(self, url: str, task: int) -> Pixels:
        try:
            return self._context.media.photo(url, task_id=task, max_side=MAX_SIDE).pixels
        except MediaError as error:
            raise _ImageLost(url, str(error)) from error


class _ImageLost(Exception):
    """An image whose features are known cannot be loaded any more."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(reason)
        self.url = url


def _fit_without_lost_images(name: str, inputs: FitInput) -> HeadResult | None:
    """Fit a kind; images that it needs and that cannot be loaded any more are left out."""
    for _ in range(MAX_LOST):
        try:
            return HEADS[name].fit(inputs)
        except _ImageLost as error:
            log.warning("photo_not_learned_from", head=name, reason=str(error))
            inputs = replace(
                inputs,
                examples=[example for example in inputs.examples if example.url != error.url],
                held_out=[example for example in inputs.held_out if example.url != error.url],
            )
    return HEADS[name].fit(inputs)


def _sample(images: Sequence[tuple[int, LabelledImage]]) -> list[tuple[int, LabelledImage]]:
    """Return a sample of the images with objects or points, and one of those with answers; in their order."""
    drawn = sample_images([pair for pair in images if pair[1].labels or pair[1].keypoints])
    answered = [pair for pair in images if pair[1].choices]
    if len(answered) > MAX_ANSWERED:
        answered = sorted(answered, key=lambda pair: zlib.crc32(f"{pair[0]} {pair[1].url}".encode()))[:MAX_ANSWERED]
    wanted = {(task, image.url) for task, image in (*drawn, *answered)}
    return [(task, image) for task, image in images if (task, image.url) in wanted]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
