"""Statistics of a version, accumulated image by image: objects per class and split, sizes, positions, samples."""

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from exporters.formats.decode import DecodedObject
from exporters.model.records import Image

# COCO size ranges: small below 32 x 32 pixels, large from 96 x 96. https://cocodataset.org/#detection-eval
SMALL, LARGE = 32**2, 96**2
# Number of histogram bins for relative box sizes, and cells per side of the centre heat map.
SIDE_STEPS = 20
GRID = 24


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
        self._candidates: dict[int, list[tuple[int, int, tuple[Image, Sequence[DecodedObject]]]]] = {}

    def add(self, image: Image, objects: Sequence[DecodedObject]) -> None:
        """Add an image with its objects."""
        split = image.split
        self.images += 1
        if image.width:
            self.image_sizes[image.width, image.height] += 1
        self.images_without_objects[split] += not objects
        self.objects_per_image[min(len(objects), 50)] += 1
        for item in objects:
            self.objects[item.class_id, split] += 1
            if image.width:
                self._measure(image, item)
        for class_id in {item.class_id for item in objects}:
            self.images_with_class[class_id, split] += 1
        if image.width:
            self._add_candidate(image, objects)

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

    def _measure(self, image: Image, item: DecodedObject) -> None:
        left, top, right, bottom = item.box
        width, height = right - left, bottom - top
        relative_size = math.sqrt(max(0.0, width * height) / (image.width * image.height))
        self.relative_sizes[min(int(relative_size * SIDE_STEPS), SIDE_STEPS - 1)] += 1
        if width > 0 and height > 0:
            self.aspect_ratios[max(-4, min(4, round(2 * math.log2(width / height))))] += 1
        self.coco_sizes["small" if item.area < SMALL else "large" if item.area >= LARGE else "medium"] += 1
        column = int((left + right) / 2 / image.width * GRID)
        row = int((top + bottom) / 2 / image.height * GRID)
        self.centres[min(max(row, 0), GRID - 1), min(max(column, 0), GRID - 1)] += 1

    def _add_candidate(self, image: Image, objects: Sequence[DecodedObject]) -> None:
        """Keep the `samples` images with the smallest hashes of each class."""
        key = int.from_bytes(hashlib.blake2b(image.file_name.encode(), digest_size=6).digest(), "big")
        for class_id in {item.class_id for item in objects} or {0}:
            candidates = self._candidates.setdefault(class_id, [])
            entry = (-key, image.id, (image, objects))
            if len(candidates) < self._max_samples:
                heapq.heappush(candidates, entry)
            elif entry[0] > candidates[0][0]:
                heapq.heapreplace(candidates, entry)
