"""Statistics of a version, accumulated image by image: objects per class and split, sizes, positions, samples."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from exporters.formats.decode import DecodedObject
from exporters.model.records import Image

# COCO size ranges: small below 32 x 32 pixels, large from 96 x 96. https://cocodataset.org/#detection-eval
SMALL, LARGE = 32**2, 96**2
# Number of histogram bins for relative box sizes, and cells per side of the centre heat map.
SIDE_STEPS = 20
GRID = 24
# Objects measured at a time.
_ROWS = 4096


class VersionStatistics:
    """Accumulated counts of a version. Memory does not grow with the number of images, except for the samples.

    Attributes:
        images: Number of images.
        objects: Number of objects by (class id, split).
        images_with_class: Number of images by (class id of an object, split).
        images_without_objects: Number of images by split.
        relative_sizes: Number of boxes by bin of sqrt(box area / image area), 0 to `SIDE_STEPS` - 1.
        aspect_ratios: Number of boxes by round(2 * log2(width / height)), -4 to 4.
        objects_per_image: Number of images by object count, capped at 50.
        coco_sizes: Number of objects by COCO size: small, medium, large.
        image_sizes: Number of images by (width, height) in pixels.
        centres: Number of box centres by grid cell, (`GRID`, `GRID`) int64, rows from top to bottom.
    """

    def __init__(self, samples: int) -> None:
        self.images = 0
        self.objects: Counter[tuple[int, str]] = Counter()
        self.images_with_class: Counter[tuple[int, str]] = Counter()
        self.images_without_objects: Counter[str] = Counter()
        self.relative_sizes: Counter[int] = Counter()
        self.aspect_ratios: Counter[int] = Counter()
        self.objects_per_image: Counter[int] = Counter()
        self.coco_sizes: Counter[str] = Counter()
        self.image_sizes: Counter[tuple[int, int]] = Counter()
        self.centres = np.zeros((GRID, GRID), dtype=np.int64)
        self._max_samples = samples
        # One row per object that is not measured yet: width and height of its image, its box, its area.
        self._rows: list[tuple[float, ...]] = []
        self._candidates: dict[int, list[tuple[int, int, tuple[Image, Sequence[DecodedObject]]]]] = {}

    def add(self, image: Image, objects: Sequence[DecodedObject]) -> None:
        """Add an image with its objects."""
        split = image.split
        self.images += 1
        if image.width:
            self.image_sizes[image.width, image.height] += 1
        self.images_without_objects[split] += not objects
        self.objects_per_image[min(len(objects), 50)] += 1
        by_class = Counter([item.class_id for item in objects])
        for class_id, count in by_class.items():
            self.objects[class_id, split] += count
            self.images_with_class[class_id, split] += 1
        if image.width:
            self._rows += [(image.width, image.height, *item.box, item.area) for item in objects]
            if len(self._rows) >= _ROWS:
                self.measure()
            self._add_candidate(image, by_class, objects)

    def samples(self) -> list[tuple[Image, Sequence[DecodedObject]]]:
        """The sample images, taken from all classes in rotation, so that rare classes appear as often as frequent ones.

        The choice depends only on the file names: reports of the same version show the same samples.
        """
        chosen: dict[int, tuple[Image, Sequence[DecodedObject]]] = {}
        queues = [
            sorted((-key, image_id, sample) for key, image_id, sample in candidates)
            for candidates in self._candidates.values()
        ]
        for index in range(self._max_samples):
            for queue in queues:
                if index < len(queue) and len(chosen) < self._max_samples:
                    _, image_id, sample = queue[index]
                    chosen.setdefault(image_id, sample)
        return sorted(chosen.values(), key=lambda sample: sample[0].id)

    def measure(self) -> None:
        """Measure the objects added so far; call it before the counts of sizes and positions are read."""
        if not self._rows:
            return
        image_width, image_height, left, top, right, bottom, area = np.array(self._rows, np.float64).T
        self._rows.clear()
        width, height = right - left, bottom - top
        relative = np.sqrt(np.maximum(0.0, width * height) / (image_width * image_height))
        _count(self.relative_sizes, np.minimum((relative * SIDE_STEPS).astype(np.int64), SIDE_STEPS - 1))
        extended = (width > 0) & (height > 0)
        ratios = np.rint(2 * np.log2(width[extended] / height[extended]))
        _count(self.aspect_ratios, np.clip(ratios, -4, 4).astype(np.int64))
        small, large = int((area < SMALL).sum()), int((area >= LARGE).sum())
        for name, number in (("small", small), ("large", large), ("medium", len(area) - small - large)):
            self.coco_sizes[name] += number
        column = ((left + right) / 2 / image_width * GRID).astype(np.int64)
        row = ((top + bottom) / 2 / image_height * GRID).astype(np.int64)
        np.add.at(self.centres, (np.clip(row, 0, GRID - 1), np.clip(column, 0, GRID - 1)), 1)

    def _add_candidate(self, image: Image, classes: Collection[int], objects: Sequence[DecodedObject]) -> None:
        """Keep the `samples` images with the smallest hashes of each class."""
        key = int.from_bytes(hashlib.blake2b(image.file_name.encode(), digest_size=6).digest(), "big")
        for class_id in classes or (0,):
            candidates = self._candidates.setdefault(class_id, [])
            entry = (-key, image.id, (image, objects))
            if len(candidates) < self._max_samples:
                heapq.heappush(candidates, entry)
            elif entry[0] > candidates[0][0]:
                heapq.heapreplace(candidates, entry)


def _count(counts: Counter[int], bins: NDArray[np.int64]) -> None:
    """Add the number of entries in each bin."""
    for value, number in zip(*np.unique(bins, return_counts=True), strict=True):
        counts[int(value)] += int(number)
