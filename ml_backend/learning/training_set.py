"""Owns what a run of learning works on: lessons, policy, what is served; and the watch that times its phases."""

import contextlib
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.learning.annotations import LabelledImage, with_boxes
from ml_backend.learning.base_models import Served
from ml_backend.learning.events import TrainingRequest
from ml_backend.policy import LearningPolicy

MOST_PHOTOS = 300
"""Labelled photos that a fit is made from; of more, a sample."""

FEW_BOXES = 100
"""Boxes of a class in the sample below which further photos that show it come along."""

Taught = Sequence[tuple[int, str, tuple[LabelledImage, ...]]]
"""(task, checksum of what decides what it teaches, its photos)."""


@dataclass
class Stopwatch:
    """Seconds by phase; says to those who watch which phase it is."""

    tell: Callable[[str, int, int], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str, total: int = 0) -> Iterator[Callable[[int], None]]:
        """Measures a phase; the block may tell how far it is."""
        self.tell(name, 0, total)
        started = time.perf_counter()
        try:
            yield lambda done: self.tell(name, done, total)
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)


@dataclass(frozen=True)
class RunInput:
    """What a run works on."""

    project: int
    asked: TrainingRequest
    policy: LearningPolicy
    config: LabelConfig
    served: Served
    lessons: Taught
    held: Taught
    started_at: float
    watch: Stopwatch

    @property
    def classes(self) -> dict[str, int]:
        """Boxes of each class that is learned from."""
        drawn = Counter(label for _, _, photos in self.lessons for photo in photos for label in photo.labels)
        return dict(sorted(drawn.items()))

    @property
    def labelled(self) -> int:
        """Tasks with a box."""
        return with_boxes(self.lessons)


def sample(lessons: Sequence[tuple[int, LabelledImage]]) -> list[tuple[int, LabelledImage]]:
    """At most about `MOST_PHOTOS` of the lessons, always the same ones, and all that show a class that few of these do.

    A last layer learns little from more, and a submit would be answered in minutes.
    """
    if len(lessons) <= MOST_PHOTOS:
        return list(lessons)
    order = sorted(lessons, key=lambda one: zlib.crc32(f"{one[0]} {one[1].url}".encode()))
    kept, rest = order[:MOST_PHOTOS], order[MOST_PHOTOS:]
    drawn = Counter(label for _, photo in kept for label in photo.labels)
    for one in rest:
        if any(drawn[label] < FEW_BOXES for label in one[1].labels):
            kept.append(one)
            drawn.update(one[1].labels)
    return sorted(kept, key=lambda one: one[0])
