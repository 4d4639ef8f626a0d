"""Inputs of a training run: training and held-out tasks, policy and served version; and its stopwatch."""

import contextlib
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.learning.annotations import LabelledImage, count_labelled
from ml_backend.learning.base_models import ServedModel
from ml_backend.learning.events import TrainingRequest
from ml_backend.policy import LearningPolicy

# Labelled images that a run trains on; of more, a sample.
MAX_IMAGES = 300

# Boxes of a class in the sample below which further images of the class are added.
MIN_BOXES = 100

# (task, checksum of its training data, its labelled images) of each task.
TrainingTasks = Sequence[tuple[int, str, tuple[LabelledImage, ...]]]


@dataclass
class Stopwatch:
    """Measures seconds by phase and reports the current phase."""

    report: Callable[[str, int, int], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str, total: int = 0) -> Iterator[Callable[[int], None]]:
        """Measure a phase; the block calls the returned function with its progress."""
        self.report(name, 0, total)
        started = time.perf_counter()
        try:
            yield lambda done: self.report(name, done, total)
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)


@dataclass(frozen=True)
class RunInput:
    """The inputs of a training run.

    Attributes:
        served: The version that the candidate is compared with, and its base.
        replaces: The version that is served during the run: `served`, unless that is a new base.
    """

    project: int
    request: TrainingRequest
    policy: LearningPolicy
    config: LabelConfig
    served: ServedModel
    training: TrainingTasks
    held_out: TrainingTasks
    started_at: float
    stopwatch: Stopwatch
    replaces: str = ""

    @property
    def classes(self) -> dict[str, int]:
        """Number of training boxes by class, sorted by name."""
        drawn = Counter(label for _, _, photos in self.training for photo in photos for label in photo.labels)
        return dict(sorted(drawn.items()))

    @property
    def labelled(self) -> int:
        """Number of training tasks with a box, a point or an answer."""
        return count_labelled(self.training)


def sample_images(images: Sequence[tuple[int, LabelledImage]]) -> list[tuple[int, LabelledImage]]:
    """Return a deterministic sample of about `MAX_IMAGES` images, plus all images with rare classes.

    A last layer gains little from more, and a training run would take minutes.
    """
    if len(images) <= MAX_IMAGES:
        return list(images)
    order = sorted(images, key=lambda pair: zlib.crc32(f"{pair[0]} {pair[1].url}".encode()))
    chosen, rest = order[:MAX_IMAGES], order[MAX_IMAGES:]
    drawn = Counter(label for _, photo in chosen for label in photo.labels)
    for pair in rest:
        if any(drawn[label] < MIN_BOXES for label in pair[1].labels):
            chosen.append(pair)
            drawn.update(pair[1].labels)
    return sorted(chosen, key=lambda pair: pair[0])
