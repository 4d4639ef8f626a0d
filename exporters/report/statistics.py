"""Statistics of a version, accumulated image by image: objects per class and split, sizes, positions, samples."""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from exporters.formats.base import LEFT_OUT, ObjectNumbers
from exporters.formats.decode import ClassNumbers, DecodedObject, decode_objects
from exporters.formats.decode_numbers import decode_numbers
from exporters.model.records import Image
from exporters.structures.arrays import offsets

# COCO size ranges: small below 32 x 32 pixels, large from 96 x 96. https://cocodataset.org/#detection-eval
SMALL, LARGE = 32**2, 96**2
# Number of histogram bins for relative box sizes, and cells per side of the centre heat map.
SIDE_STEPS = 20
GRID = 24
# Objects and images that are collected before they are measured.
_WAITING = 16_384
# Returns the objects of an image.
_Load = Callable[[], Sequence[DecodedObject]]


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
        self._candidates: dict[int, list[tuple[int, int, tuple[Image, _Load]]]] = {}
        # What is not measured yet: class id, box and area of each object; split, size and objects of each image.
        self._values: list[NDArray[np.float64]] = []
        self._objects = 0
        self._splits: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._counts: list[NDArray[np.int64]] = []

    def add(
        self,
        name: str,
        images: Sequence[Image],
        records: Sequence[bytes],
        classes: ClassNumbers,
        numbers: ObjectNumbers | None = None,
    ) -> None:
        """Add images with their objects.

        Args:
            name: The format of the records; empty if there is none with objects.
            images: The images.
            records: The record of each image.
            classes: The class numbers.
            numbers: What the records say; None: they are read.
        """
        if numbers is None:
            numbers = decode_numbers(name, records, images, classes)
        class_ids: NDArray[np.int64] = numbers.values[:, 0].astype(np.int64)
        first = offsets(numbers.counts).tolist()
        self.images += len(images)
        self._values.append(numbers.values)
        self._objects += len(class_ids)
        self._counts.append(numbers.counts)
        self._splits += [image.split for image in images]
        self._sizes += [(image.width, image.height) for image in images]
        has_empty = () if numbers.counts.all() else (0,)
        threshold = self._threshold({*np.unique(class_ids).tolist(), *has_empty})
        for index, image in enumerate(images):
            key = -int.from_bytes(blake2b(image.file_name.encode(), digest_size=6).digest(), "big")
            if key > threshold and image.width:
                has_objects = name and records[index] != LEFT_OUT
                load: _Load = partial(decode_objects, name, records[index], image, classes) if has_objects else tuple
                self._add_candidate(key, image, set(class_ids[first[index] : first[index + 1]].tolist()), load)
        if self._objects + len(self._splits) >= _WAITING:
            self.measure()

    def samples(self) -> list[tuple[Image, Sequence[DecodedObject]]]:
        """The sample images, taken from all classes in rotation, so that rare classes appear as often as frequent ones.

        The choice depends only on the file names: reports of the same version show the same samples.
        """
        chosen: dict[int, tuple[Image, _Load]] = {}
        queues = [
            sorted((-key, image_id, sample) for key, image_id, sample in candidates)
            for candidates in self._candidates.values()
        ]
        for index in range(self._max_samples):
            for queue in queues:
                if index < len(queue) and len(chosen) < self._max_samples:
                    _, image_id, sample = queue[index]
                    chosen.setdefault(image_id, sample)
        return [(image, load()) for image, load in sorted(chosen.values(), key=lambda sample: sample[0].id)]

    def measure(self) -> None:
        """Measure what was added so far; call it before the counts are read."""
        values = np.concatenate([*self._values, np.empty((0, 6))])
        per_image = np.concatenate([*self._counts, np.empty(0, np.int64)])
        splits = sorted(set(self._splits))
        numbers = {split: number for number, split in enumerate(splits)}
        split_of = np.array([numbers[split] for split in self._splits], np.int64)
        sizes = np.array(self._sizes, np.int64).reshape(-1, 2)
        self.image_sizes.update([size for size in self._sizes if size[0]])
        self.images_without_objects.update([self._splits[index] for index in np.flatnonzero(per_image == 0).tolist()])
        self.objects_per_image.update(np.minimum(per_image, 50).tolist())
        for waiting in (self._values, self._counts, self._splits, self._sizes):
            waiting.clear()
        self._objects = 0
        image_of = np.repeat(np.arange(len(sizes)), per_image)
        # one number for the split and the class of an object, and one with its image
        width = int(values[:, 0].max(initial=0)) + 1
        keys = split_of[image_of] * width + values[:, 0].astype(np.int64)
        in_image = np.unique(image_of * (width * len(splits)) + keys) % (width * len(splits))
        for per_class, found in ((self.objects, keys), (self.images_with_class, in_image)):
            per_key: Counter[int] = Counter()
            _count(per_key, found)
            for key, number in per_key.items():
                per_class[key % width, splits[key // width]] += number
        sized = sizes[image_of, 0] > 0
        self._measure_boxes(sizes[image_of][sized], values[sized, 1:5], values[sized, 5])

    def _measure_boxes(self, sizes: NDArray[np.int64], boxes: NDArray[np.float64], area: NDArray[np.float64]) -> None:
        """Measure boxes: sizes of their images (n, 2), boxes (n, 4) and areas (n,) in pixels."""
        (image_width, image_height), (left, top, right, bottom) = sizes.T, boxes.T
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

    def _threshold(self, class_ids: Iterable[int]) -> float:
        """Return the key that an image with objects of these classes must exceed to be a sample of one of them."""
        heaps = [self._candidates.get(class_id, ()) for class_id in class_ids]
        return min([heap[0][0] if heap and len(heap) == self._max_samples else -math.inf for heap in heaps], default=0)

    def _add_candidate(self, key: int, image: Image, class_ids: set[int], load: _Load) -> None:
        """Keep the `samples` images with the smallest hashes of each class."""
        for class_id in class_ids or (0,):
            candidates = self._candidates.setdefault(class_id, [])
            if len(candidates) < self._max_samples:
                heapq.heappush(candidates, (key, image.id, (image, load)))
            elif candidates and key > candidates[0][0]:
                heapq.heapreplace(candidates, (key, image.id, (image, load)))


def _count(counts: Counter[int], bins: NDArray[np.int64]) -> None:
    """Add the number of entries in each bin."""
    values, numbers = np.unique(bins, return_counts=True)
    for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
        counts[value] += number
