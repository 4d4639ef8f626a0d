"""Owns the simulation: a labelled data set replayed through the code that learns in service: how many labels do?

Photos are labelled in the order of a strategy; at each number asked for, a head is learned and judged on the test
photos. Every seed draws its own pool, so that a strategy without chance in it gives a spread of results too.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

import numpy as np

from labelloop.service.media import MediaError, load_photo
from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import prepare
from ml_backend.training.acquisition import (
    COLD,
    FLOOR,
    LabelCounts,
    UnlabelledImage,
    next_photos,
    photo_vector,
    uncertainty,
    weights,
)
from ml_backend.training.backbone import CandidateFeatures, FrozenBackbone
from ml_backend.training.datasets import LabelledPhoto
from ml_backend.training.examples import Example
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.linear_head import Head
from ml_backend.training.metrics import GroundTruth, mean_ap50
from ml_backend.training.model_selection import select_and_fit

Strategy = Literal["random", "active"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

POOL_SHARE = 2 / 3
"""Of the photos that may be labelled, those that a seed draws."""

STEP = 20
"""The active strategy chooses one photo at a time, as the queue is made anew after each; of many labelled photos one in
so many more, for they are hardly told apart by a fit, and a replay is to end."""

IN_MEMORY = 200
"""Test photos whose sights stay in memory, for they are judged on again and again; about 4 MB each."""

JUDGE_FLOOR = 0.005
"""Score of the weakest detection that counts for AP50."""


@dataclass(frozen=True)
class Run:
    """One point of a learning curve; what `--json` lists under `runs`.

    Attributes:
        strategy: How photos were chosen; `seed` of the draw.
        labelled: Photos asked for; `images` labelled, fewer where the pool ran out, and the `boxes` drawn on them.
        ap50: Mean over the classes of the test photos.
        seconds: To fit the head.
    """

    strategy: Strategy
    labelled: int
    seed: int
    ap50: float
    images: int
    boxes: int
    seconds: float


@dataclass(frozen=True)
class Album:
    """Photos of a data set as a backbone sees them."""

    backbone: FrozenBackbone
    sights: FeatureCache

    def sight(self, photo: LabelledPhoto) -> CandidateFeatures:
        """What the backbone sees on a photo.

        Raises:
            MediaError: It cannot be decoded.
        """
        content = photo.path.read_bytes()
        key = f"{self.backbone.version}-{hashlib.sha256(content).hexdigest()[:24]}"
        return self.sights.get(key, lambda: self._see(content, photo.path.name))

    def _see(self, content: bytes, name: str) -> CandidateFeatures:
        spec = self.backbone.spec
        loaded = load_photo(content, max_side=max(spec.width, spec.height), name=name)
        return self.backbone.extract_features([prepare(loaded.image, spec, size=(loaded.width, loaded.height))])[0]

    def example(self, photo: LabelledPhoto) -> Example:
        """A labelled photo."""
        drawn = np.asarray(photo.boxes, np.float32).reshape(-1, 4)
        return Example(self.sight(photo), drawn, photo.labels)


def readable(
    album: Album, photos: Sequence[LabelledPhoto], progress: Callable[[int, int], None]
) -> tuple[list[LabelledPhoto], list[str]]:
    """Looks at every photo once; those that can be decoded, and what is wrong with the others, in words."""
    good, bad = [], []
    for index, photo in enumerate(photos, 1):
        try:
            album.sight(photo)
        except MediaError as error:
            bad.append(f"{photo.path.name}: {error}")
        else:
            good.append(photo)
        progress(index, len(photos))
    return good, bad


def by_name(photos: Sequence[LabelledPhoto], *, seed: int) -> list[LabelledPhoto]:
    """Photos by a chance that hangs on their names alone: the same on every machine, in whatever order they come."""
    return sorted(photos, key=lambda photo: hashlib.sha256(f"{seed} {photo.name}".encode()).digest())


def simulate(
    album: Album,
    pool: Sequence[LabelledPhoto],
    test: Sequence[LabelledPhoto],
    *,
    sizes: Sequence[int],
    strategies: Sequence[Strategy],
    seeds: int,
) -> Iterator[Run]:
    """One run after the other, as they are done.

    Args:
        album: Shows the photos.
        pool: Photos that may be labelled; all can be decoded.
        test: Photos that heads are judged on.
        sizes: Numbers of labelled photos.
        strategies: How they are chosen.
        seeds: Draws of each strategy.
    """
    truths = [GroundTruth(np.asarray(one.boxes, np.float32).reshape(-1, 4), one.labels) for one in test]
    kept = [album.sight(photo) for photo in test[:IN_MEMORY]]
    classes = sorted({label for one in (*pool, *test) for label in one.labels})
    known = [(name, index) for index, name in enumerate(album.backbone.names) if name in classes]
    for strategy in strategies:
        for seed in range(seeds):
            share = max(min(len(pool), max(sizes)), round(len(pool) * POOL_SHARE))
            drawn = [pool[index] for index in np.random.default_rng(seed).permutation(len(pool))[:share]]
            labeller = _Labeller(album, drawn, known, strategy, seed)
            for size in sorted(set(sizes)):
                labeller.label(size)
                head = labeller.head()
                sights = chain(kept, (album.sight(photo) for photo in test[IN_MEMORY:]))
                found = [head.detect(one, floor=JUDGE_FLOOR, exact=False) for one in sights]
                yield Run(
                    strategy=strategy,
                    labelled=size,
                    seed=seed,
                    ap50=mean_ap50(truths, found, names=head.names),
                    images=len(labeller.labelled),
                    boxes=sum(len(one.labels) for one in labeller.labelled),
                    seconds=labeller.seconds,
                )


class _Labeller:
    """An annotator who draws what the data set says, in the order of a strategy."""

    def __init__(
        self,
        album: Album,
        pool: Sequence[LabelledPhoto],
        known: Sequence[tuple[str, int]],
        strategy: Strategy,
        seed: int,
    ) -> None:
        self._album = album
        self._known = known
        self._strategy = strategy
        self._seed = seed
        asks = pool if strategy == "active" else []
        self._vectors: Mapping[str, Floats] = {photo.name: photo_vector(album.sight(photo)) for photo in asks}
        self._left = by_name(pool, seed=seed)
        self._examples: list[Example] = []
        self._head: Head | None = None
        self.labelled: list[LabelledPhoto] = []
        self.seconds = 0.0

    def label(self, size: int) -> None:
        """Draws on photos until there are so many, or none is left."""
        while len(self.labelled) < size and self._left:
            count = min(
                1 + len(self.labelled) // STEP if self._strategy == "active" else size, size - len(self.labelled)
            )
            chosen = self._choose(count)
            for photo in [self._left[index] for index in chosen]:
                self.labelled.append(photo)
                self._examples.append(self._album.example(photo))
            self._left = [photo for index, photo in enumerate(self._left) if index not in set(chosen)]
            self._head = None

    def head(self) -> Head:
        """The head learned from what is labelled."""
        if self._head is None:
            started = time.perf_counter()
            self._head = select_and_fit(self._examples, levels=self._album.backbone.levels, known=self._known).head
            self.seconds = time.perf_counter() - started
        return self._head

    def _choose(self, count: int) -> list[int]:
        # Both strategies begin with the same photos: what sets them apart is not the luck of the start.
        if self._strategy == "random" or len(self.labelled) < COLD:
            return list(range(min(count, len(self._left))))
        drawn = LabelCounts.on((one.labels, self._weights(one)) for one in self._examples)
        taken = [self._vectors[photo.name] for photo in self.labelled]
        looks = [UnlabelledImage(self._vectors[photo.name], self._doubt(photo, drawn)) for photo in self._left]
        width = len(looks[0].vector)
        return next_photos(looks, np.array(taken, np.float32).reshape(-1, width), count, seed=self._seed)

    def _doubt(self, photo: LabelledPhoto, drawn: LabelCounts) -> float | None:
        head = self.head()
        sight = self._album.sight(photo)
        found = head.detect(sight, floor=FLOOR, exact=False)
        shares = weights(found.boxes, width=sight.fit.width, height=sight.fit.height)
        return uncertainty(found, shares, names=head.names, drawn=drawn)

    @staticmethod
    def _weights(one: Example) -> Floats:
        return weights(one.drawn, width=one.sight.fit.width, height=one.sight.fit.height)
