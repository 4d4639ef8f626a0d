"""Simulate labelling: replay a labelled data set through the training code, to estimate how many labels suffice.

A strategy orders the images; at each requested number of labels a head is fitted and evaluated on the test images.
Every seed draws its own pool, so a deterministic strategy has a variance too.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from labelloop.service.media import MediaError, load_image
from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.preprocess import prepare
from ml_backend.inference.slicing import detect_as_learned
from ml_backend.training.acquisition import (
    COLD_START_IMAGES,
    FLOOR,
    LabelCounts,
    UnlabelledImage,
    image_vector,
    next_images,
    object_weights,
    uncertainty,
)
from ml_backend.training.backbone import CandidateFeatures, FrozenBackbone
from ml_backend.training.datasets import LocalImage
from ml_backend.training.examples import Example
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.linear_head import LinearHead, head_detector
from ml_backend.training.metrics import GroundTruth, mean_ap50
from ml_backend.training.tiles import Part, fit_on_best_view

Strategy = Literal["random", "active"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

# Share of the pool that a seed draws.
POOL_SHARE = 2 / 3

# The active strategy chooses one image at a time, plus one for every STEP labelled: later fits hardly change between
# images, and the replay must end.
STEP = 20

# Test images whose features stay in memory, as they are evaluated repeatedly; about 4 MB each.
IN_MEMORY = 200

# Minimum score of the detections that count for AP50.
EVALUATION_FLOOR = 0.005


@dataclass(frozen=True)
class SimulationRun:
    """One point of a learning curve; `--json` lists them under `runs`.

    Attributes:
        strategy: How images were chosen.
        labelled: Requested number of labelled images.
        seed: Of the pool.
        ap50: Mean over the classes of the test images.
        images: Labelled images, fewer than requested where the pool ran out.
        boxes: Labelled boxes on them.
        seconds: To fit the head.
        tiling: Whether tiles of the images were used, and why, in words; empty where objects are large enough.
    """

    strategy: Strategy
    labelled: int
    seed: int
    ap50: float
    images: int
    boxes: int
    seconds: float
    tiling: str = ""


@dataclass(frozen=True)
class FeatureSource:
    """Features of a data set's images, through a disk cache."""

    backbone: FrozenBackbone
    cache: FeatureCache

    def extract(self, image: LocalImage) -> CandidateFeatures:
        """Extract the candidate features of an image.

        Raises:
            MediaError: It cannot be decoded.
        """
        content = image.path.read_bytes()
        key = f"{self.backbone.cache_key}-{hashlib.sha256(content).hexdigest()[:24]}"
        return self.cache.get(key, lambda: self._see(content, image.path.name))

    def tiles(self, image: LocalImage, parts: Sequence[Part]) -> list[CandidateFeatures]:
        """Extract the candidate features of parts of an image.

        Raises:
            MediaError: It cannot be decoded.
        """
        content = image.path.read_bytes()
        digest = f"{self.backbone.cache_key}-{hashlib.sha256(content).hexdigest()[:24]}"

        def compute() -> list[CandidateFeatures]:
            pixels = load_image(content, max_side=None, name=image.path.name).pixels
            return self.backbone.extract_tiles(pixels, parts)

        return self.cache.get_all([f"{digest}-{'-'.join(map(str, part))}" for part in parts], compute)

    def detect(self, head: LinearHead, image: LocalImage, *, floor: float) -> Detections:
        """Detect objects with a head on the views that it was fitted on.

        Raises:
            MediaError: It cannot be decoded.
        """
        if head.tiles == 1:
            return head.detect(self.extract(image), floor=floor, exact=False)
        detector = head_detector(self.backbone, head, version="simulated")
        pixels = load_image(image.path.read_bytes(), max_side=None, name=image.path.name).pixels
        return detect_as_learned(detector, pixels, floor=floor)

    def _see(self, content: bytes, name: str) -> CandidateFeatures:
        spec = self.backbone.spec
        loaded = load_image(content, max_side=spec.decode_side, name=name)
        return self.backbone.extract_features([prepare(loaded.pixels, spec, size=(loaded.width, loaded.height))])[0]

    def example(self, image: LocalImage) -> Example:
        """Build the training example of an image."""
        drawn = np.asarray(image.boxes, np.float32).reshape(-1, 4)
        return Example(self.extract(image), drawn, image.labels)


def decodable_images(
    source: FeatureSource, images: Sequence[LocalImage], progress: Callable[[int, int], None]
) -> tuple[list[LocalImage], list[str]]:
    """Extract every image once.

    Returns:
        The images that can be decoded, and messages for the others.
    """
    good, bad = [], []
    for index, image in enumerate(images, 1):
        try:
            source.extract(image)
        except MediaError as error:
            bad.append(f"{image.path.name}: {error}")
        else:
            good.append(image)
        progress(index, len(images))
    return good, bad


def hash_order(images: Sequence[LocalImage], *, seed: int) -> list[LocalImage]:
    """Shuffle images by a hash of seed and name: the same order on every machine, whatever their input order."""
    return sorted(images, key=lambda image: hashlib.sha256(f"{seed} {image.name}".encode()).digest())


def simulate(
    source: FeatureSource,
    pool: Sequence[LocalImage],
    test: Sequence[LocalImage],
    *,
    sizes: Sequence[int],
    strategies: Sequence[Strategy],
    seeds: int,
) -> Iterator[SimulationRun]:
    """Yield one run after the other, as they finish.

    Args:
        source: Features of the images.
        pool: Images that may be labelled; all are decodable.
        test: Images that heads are evaluated on.
        sizes: Numbers of labelled images.
        strategies: How they are chosen.
        seeds: Draws per strategy.
    """
    truths = [GroundTruth(np.asarray(image.boxes, np.float32).reshape(-1, 4), image.labels) for image in test]
    in_memory = [source.extract(test_image) for test_image in test[:IN_MEMORY]]
    classes = sorted({label for image in (*pool, *test) for label in image.labels})
    backbone_classes = [(name, index) for index, name in enumerate(source.backbone.names) if name in classes]
    for strategy in strategies:
        for seed in range(seeds):
            share = max(min(len(pool), max(sizes)), round(len(pool) * POOL_SHARE))
            seed_pool = [pool[index] for index in np.random.default_rng(seed).permutation(len(pool))[:share]]
            labeller = _Labeller(source, seed_pool, backbone_classes, strategy, seed)
            for size in sorted(set(sizes)):
                labeller.label(size)
                head = labeller.head()
                detections = [
                    head.detect(in_memory[number], floor=EVALUATION_FLOOR, exact=False)
                    if head.tiles == 1 and number < len(in_memory)
                    else source.detect(head, test_image, floor=EVALUATION_FLOOR)
                    for number, test_image in enumerate(test)
                ]
                yield SimulationRun(
                    strategy=strategy,
                    labelled=size,
                    seed=seed,
                    ap50=mean_ap50(truths, detections, names=head.names),
                    images=len(labeller.labelled),
                    boxes=sum(len(image.labels) for image in labeller.labelled),
                    seconds=labeller.seconds,
                    tiling=labeller.tiling,
                )


class _Labeller:
    """An annotator who labels images as in the data set, in the order of a strategy."""

    def __init__(
        self,
        source: FeatureSource,
        pool: Sequence[LocalImage],
        backbone_classes: Sequence[tuple[str, int]],
        strategy: Strategy,
        seed: int,
    ) -> None:
        self._source = source
        self._backbone_classes = backbone_classes
        self._strategy = strategy
        self._seed = seed
        candidates = pool if strategy == "active" else []
        self._vectors: Mapping[str, Floats] = {image.name: image_vector(source.extract(image)) for image in candidates}
        self._unlabelled = hash_order(pool, seed=seed)
        self._examples: list[Example] = []
        self._head: LinearHead | None = None
        self.labelled: list[LocalImage] = []
        self.seconds = 0.0
        self.tiling = ""

    def label(self, size: int) -> None:
        """Label images until there are `size`, or the pool is empty."""
        while len(self.labelled) < size and self._unlabelled:
            count = min(
                1 + len(self.labelled) // STEP if self._strategy == "active" else size, size - len(self.labelled)
            )
            chosen = self._choose(count)
            for image in [self._unlabelled[index] for index in chosen]:
                self.labelled.append(image)
                self._examples.append(self._source.example(image))
            self._unlabelled = [image for index, image in enumerate(self._unlabelled) if index not in set(chosen)]
            self._head = None

    def head(self) -> LinearHead:
        """The head fitted on the labelled images."""
        if self._head is None:
            started = time.perf_counter()
            fitted = fit_on_best_view(
                self._examples, lambda index, parts: self._source.tiles(self.labelled[index], parts),
                spec=self._source.backbone.spec, levels=self._source.backbone.levels,
                backbone_classes=self._backbone_classes,
            )  # fmt: skip
            self._head, self.tiling = fitted.head, fitted.tiling
            self.seconds = time.perf_counter() - started
        return self._head

    def _choose(self, count: int) -> list[int]:
        # Both strategies start with the same images, so that the start does not decide between them.
        if self._strategy == "random" or len(self.labelled) < COLD_START_IMAGES:
            return list(range(min(count, len(self._unlabelled))))
        counts = LabelCounts.from_images((example.labels, self._weights(example)) for example in self._examples)
        labelled = [self._vectors[image.name] for image in self.labelled]
        images = [
            UnlabelledImage(self._vectors[image.name], self._uncertainty(image, counts)) for image in self._unlabelled
        ]
        width = len(images[0].vector)
        return next_images(images, np.array(labelled, np.float32).reshape(-1, width), count, seed=self._seed)

    def _uncertainty(self, image: LocalImage, counts: LabelCounts) -> float | None:
        head = self.head()
        detections = self._source.detect(head, image, floor=FLOOR)
        fit = self._source.extract(image).fit
        shares = object_weights(detections.boxes, width=fit.width, height=fit.height)
        return uncertainty(detections, shares, names=head.names, labelled=counts)

    @staticmethod
    def _weights(example: Example) -> Floats:
        return object_weights(example.drawn, width=example.candidates.fit.width, height=example.candidates.fit.height)
