"""The figures of a version, counted image by image: classes, sizes, places, how many objects an image has."""

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from exporters.formats.decode import DecodedObject
from exporters.model.records import Image

SMALL, LARGE = 32**2, 96**2
"""COCO's: an object is small below 32 x 32 pixels, large from 96 x 96. https://cocodataset.org/#detection-eval"""

SIDE_STEPS = 20
GRID = 24


class Figures:
    """Counts; memory does not grow with the images but for ``samples``."""

    def __init__(self, samples: int) -> None:
        self.images = 0
        self.objects: Counter[tuple[int, str]] = Counter()
        self.images_of: Counter[tuple[int, str]] = Counter()
        self.images_in: Counter[str] = Counter()
        self.empty: Counter[str] = Counter()
        self.sides: Counter[int] = Counter()
        self.ratios: Counter[int] = Counter()
        self.many: Counter[int] = Counter()
        self.sizes: Counter[str] = Counter()
        self.photo_sizes: Counter[tuple[int, int]] = Counter()
        self.places = np.zeros((GRID, GRID), dtype=np.int64)
        self._wanted = samples
        self._kept: dict[int, list[tuple[int, int, tuple[Image, Sequence[DecodedObject]]]]] = {}

    def add(self, image: Image, objects: Sequence[DecodedObject]) -> None:
        """Count an image with its objects."""
        split = image.split
        self.images += 1
        self.images_in[split] += 1
        if image.width:
            self.photo_sizes[image.width, image.height] += 1
        self.empty[split] += not objects
        self.many[min(len(objects), 50)] += 1
        for each in objects:
            self.objects[each.class_id, split] += 1
            if image.width:
                self._measure(image, each)
        for class_id in {each.class_id for each in objects}:
            self.images_of[class_id, split] += 1
        if image.width:
            self._keep(image, objects)

    def samples(self) -> list[tuple[Image, Sequence[DecodedObject]]]:
        """Images to be shown: of each class some, in turns, the rare classes as often as the usual ones.

        Which ones follows from the images' names, so that a report of the same version shows the same.
        """
        found: dict[int, tuple[Image, Sequence[DecodedObject]]] = {}
        turns = [sorted((-key, number, sample) for key, number, sample in kept) for kept in self._kept.values()]
        for place in range(self._wanted):
            for kept in turns:
                if place < len(kept) and len(found) < self._wanted:
                    _, number, sample = kept[place]
                    found.setdefault(number, sample)
        return sorted(found.values(), key=lambda sample: sample[0].id)

    def _measure(self, image: Image, each: DecodedObject) -> None:
        left, top, right, bottom = each.box
        width, height = right - left, bottom - top
        share = math.sqrt(max(0.0, width * height) / (image.width * image.height))
        self.sides[min(int(share * SIDE_STEPS), SIDE_STEPS - 1)] += 1
        if width > 0 and height > 0:
            self.ratios[max(-4, min(4, round(2 * math.log2(width / height))))] += 1
        self.sizes["small" if each.area < SMALL else "large" if each.area >= LARGE else "medium"] += 1
        column = int((left + right) / 2 / image.width * GRID)
        row = int((top + bottom) / 2 / image.height * GRID)
        self.places[min(max(row, 0), GRID - 1), min(max(column, 0), GRID - 1)] += 1

    def _keep(self, image: Image, objects: Sequence[DecodedObject]) -> None:
        key = int.from_bytes(hashlib.blake2b(image.file_name.encode(), digest_size=6).digest(), "big")
        for class_id in {each.class_id for each in objects} or {0}:
            kept = self._kept.setdefault(class_id, [])
            entry = (-key, image.id, (image, objects))
            if len(kept) < self._wanted:
                heapq.heappush(kept, entry)
            elif entry[0] > kept[0][0]:
                heapq.heapreplace(kept, entry)
