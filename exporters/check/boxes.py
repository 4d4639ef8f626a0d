"""Check classes and boxes: balance over the splits, tiny, odd, doubled and outlying boxes."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporters.check.findings import CheckReport, ClassRow, DatasetFinding, ShownImage
from exporters.check.images import CheckedImage, CheckedObject
from labelloop.labeling.geometry.label_placement import LabelsMisplaced, place_boxes

# Longest side of the image at the model's input, in pixels.
INPUT_SIZE = 640
# Side of a cell of the finest grid of common detectors (stride 8), in pixels at the input.
_CELL = 8.0
_RARE, _IMBALANCE = 20, 100
# Cramer's V from which the shares of classes differ: "small" after Cohen (1988) is 0.1.
_MIN_EFFECT, _MAX_P = 0.1, 0.001
_MAX_ASPECT = 20.0
_WHOLE, _USUALLY_SMALLER = 0.98, 0.8
_SAME_PLACE = 0.9
# Boxes of a class from which it has a usual size, and robust z-score beyond which a box is unusual.
_FEW, _MAX_Z = 30, 6.0
_SAMPLES = 2000
# Boxes of an image compared with each other for doubles.
_MAX_COMPARED = 1000


class ClassStatistics:
    """Counts of classes by split, and a random sample of the sizes of each class's boxes; memory does not grow."""

    def __init__(self) -> None:
        self._objects: dict[str, Counter[str]] = {}
        self._samples: dict[str, list[tuple[float, float]]] = {}
        self._random = random.Random(0)  # noqa: S311 - a sample
        self.splits: Counter[str] = Counter()
        self.images_with_labels: Counter[str] = Counter()

    def add(self, image: CheckedImage) -> None:
        """Count an image."""
        self.splits[image.split] += 1
        self.images_with_labels[image.split] += bool(image.objects or image.classes)
        for label in (*(item.label for item in image.objects), *image.classes):
            self._objects.setdefault(label, Counter())[image.split] += 1
        if image.width and image.height:
            for item in image.objects:
                self._sample(item, image)

    def _sample(self, item: CheckedObject, image: CheckedImage) -> None:
        kept, seen = self._samples.setdefault(item.label, []), self._objects[item.label].total()
        shape = _size_and_aspect(item.box, image.width, image.height)
        if shape is None:
            return
        if len(kept) < _SAMPLES:
            kept.append(shape)
        elif (place := self._random.randrange(seen)) < _SAMPLES:
            kept[place] = shape

    def report(self, classes: Sequence[str], report: CheckReport) -> None:
        """Report the balance of the classes."""
        splits = [split for split, number in self.splits.items() if number]
        labels = dict.fromkeys((*classes, *self._objects))
        none: Counter[str] = Counter()
        rows = [ClassRow(label, {split: self._objects.get(label, none)[split] for split in splits}) for label in labels]
        report.classes += rows
        largest = max((sum(row.objects.values()) for row in rows), default=0)
        for row in rows:
            total = sum(row.objects.values())
            missing = [split for split in splits if self.images_with_labels[split] and not row.objects[split]]
            if missing and largest:
                where = ", ".join(filter(None, missing)) or "the data set"
                which = f"none of {total:,} objects" if total else "no object"
                add(report, "class-missing", f"{row.label}: {which} in {where}", total)
            if 0 < total < _RARE:
                add(report, "class-rare", f"{row.label}: {total}", -total)
            elif 0 < total * _IMBALANCE < largest:
                add(report, "class-imbalance", f"{row.label}: {total:,}, the most frequent class {largest:,}", -total)
        self._compare_splits(rows, splits, report)

    def _compare_splits(self, rows: Sequence[ClassRow], splits: Sequence[str], report: CheckReport) -> None:
        """Report splits whose shares of classes differ: chi-square test of homogeneity and its effect size."""
        from scipy.stats import chi2_contingency

        for first, second in pairwise(splits):
            table = np.array([[row.objects[first], row.objects[second]] for row in rows], np.float64)
            table = table[table.sum(axis=1) > 0]
            if len(table) < 2 or (table.sum(axis=0) == 0).any():
                continue
            test = chi2_contingency(table, correction=False)
            effect = float(np.sqrt(test.statistic / table.sum()))  # Cramer's V of a table with two columns
            if effect >= _MIN_EFFECT and test.pvalue <= _MAX_P:
                shares = table / table.sum(axis=0)
                worst = int(np.abs(shares[:, 0] - shares[:, 1]).argmax())
                label = [row.label for row in rows if sum(row.objects[split] for split in (first, second))][worst]
                detail = (
                    f"{first} and {second}: Cramér's V {effect:.2f}; most for {label},"
                    f" {shares[worst, 0]:.1%} and {shares[worst, 1]:.1%}"
                )
                add(report, "class-shares", detail, effect)

    def usual(self) -> "UsualBoxes":
        """Return the usual sizes of the boxes of each class."""
        return UsualBoxes({label: np.array(shapes) for label, shapes in self._samples.items() if len(shapes) >= _FEW})


class UsualBoxes:
    """The usual size and aspect of each class: medians and median absolute deviations of their logarithms.

    Args:
        samples: Label -> (n, 2): log of the square root of the relative area, log of width / height.
    """

    def __init__(self, samples: Mapping[str, NDArray[np.float64]]) -> None:
        self._centres = {label: np.median(values, axis=0) for label, values in samples.items()}
        # the floor keeps classes whose boxes are all alike, to a pixel, from making every other box unusual
        self._spreads = {
            label: np.maximum(1.4826 * np.median(np.abs(values - self._centres[label]), axis=0), 0.1)
            for label, values in samples.items()
        }
        self._sides = {label: float(np.exp(centre[0])) for label, centre in self._centres.items()}

    def side(self, label: str) -> float:
        """Return the median side of a class relative to that of the image; 0 if it has too few boxes."""
        return self._sides.get(label, 0.0)

    def deviation(self, label: str, shape: tuple[float, float]) -> tuple[float, str]:
        """Return the larger robust z-score of a box, and how the box differs; 0 without a usual size."""
        if label not in self._centres:
            return 0.0, ""
        scores = (np.array(shape) - self._centres[label]) / self._spreads[label]
        which = int(np.abs(scores).argmax())
        words = (("smaller", "larger"), ("narrower", "wider"))[which][int(scores[which] > 0)]
        factor = float(np.exp(abs(shape[which] - self._centres[label][which])))
        return float(abs(scores[which])), f"{factor:.1f} times {words} than the usual {label}"


class _ShownBox(NamedTuple):
    """A box (1, 4) with the position of its image."""

    position: int
    box: NDArray[np.float32]


class BoxChecker:
    """Checks the boxes of one image after the other.

    Args:
        usual: The usual boxes of each class.
        report: Receives the findings.
        input_size: Longest side of the image at the model's input in pixels.
    """

    def __init__(self, usual: UsualBoxes, report: CheckReport, *, input_size: int = INPUT_SIZE) -> None:
        self._usual, self._report, self._input_size = usual, report, input_size
        self._edges = self._boxes = 0

    def check(self, position: int, image: CheckedImage, actual: tuple[int, int] | None) -> None:
        """Check the boxes of an image.

        Args:
            position: Its position in the data set.
            image: The image.
            actual: (width, height) of its file in pixels; None if it was not read.
        """
        if not image.objects:
            return
        boxes = np.array([item.box for item in image.objects], np.float32)
        stated = (image.width, image.height)
        size = actual or stated
        if not all(size):
            return
        try:
            placed = place_boxes(boxes, stated, size)
        except LabelsMisplaced as error:
            self._add("image-size", str(error), position, boxes[:20], 1.0)
            return
        self._boxes += len(boxes)
        limits = np.array([*size, *size], np.float32)
        width, height = (placed.boxes[:, 2:] - placed.boxes[:, :2]).T
        self._edges += int(((placed.boxes[:, :2] <= 1) | (placed.boxes[:, 2:] >= limits[2:] - 1)).any(axis=1).sum())
        for number, item in enumerate(image.objects):
            if not placed.kept[number]:
                self._add("box-off-image", item.label, position, boxes[[number]], 1.0)
                continue
            sides = float(width[number]), float(height[number])
            self._check_shape(item, _ShownBox(position, boxes[[number]]), size, sides)
        self._check_doubles(position, image, placed.boxes, boxes)

    def finish(self) -> None:
        """Report what is counted over all images."""
        self._report.looked_at["boxes"] += self._boxes
        if self._edges:
            share = self._edges / self._boxes
            self._report.add(
                DatasetFinding("box-edge", f"{self._edges:,} of {self._boxes:,} boxes ({share:.1%})", share),
                count=self._edges,
            )

    def _check_shape(
        self, item: CheckedObject, shown: _ShownBox, size: tuple[int, int], sides: tuple[float, float]
    ) -> None:
        (position, box), (width, height) = shown, sides
        side = float(np.sqrt(max(0.0, width * height))) * min(1.0, self._input_size / max(size))
        if side < _CELL:
            detail = f"{item.label}: {width:.0f} x {height:.0f} px, {side:.1f} at an input of {self._input_size}"
            self._add("box-tiny", detail, position, box, -side)
            return
        aspect = max(width, height) / max(min(width, height), 1e-3)
        if aspect > _MAX_ASPECT:
            self._add("box-aspect", f"{item.label}: {width:.0f} x {height:.0f} px", position, box, aspect)
            return
        if width >= _WHOLE * size[0] and height >= _WHOLE * size[1]:
            usual = self._usual.side(item.label)
            if 0 < usual < _USUALLY_SMALLER:
                detail = f"{item.label}: usually {usual:.0%} of the image's side"
                self._add("box-whole-image", detail, position, box, 1 - usual)
                return
        shape = (float(np.log(np.sqrt(width * height / (size[0] * size[1])))), float(np.log(width / height)))
        score, how = self._usual.deviation(item.label, shape)
        if score > _MAX_Z:
            self._add("box-outlier", f"{item.label}: {how}", position, box, score)

    def _check_doubles(
        self, position: int, image: CheckedImage, placed: NDArray[np.float32], boxes: NDArray[np.float32]
    ) -> None:
        count = min(len(placed), _MAX_COMPARED)
        if count < 2:
            return
        if len(placed) > _MAX_COMPARED:
            self._report.looked_at["boxes not compared for doubles"] += len(placed) - _MAX_COMPARED
        overlaps = np.triu(_overlaps(placed[:count]), 1)
        for first, second in np.argwhere(overlaps >= _SAME_PLACE).tolist():
            labels = image.objects[first].label, image.objects[second].label
            kind = "box-twice" if labels[0] == labels[1] else "box-two-classes"
            what = labels[0] if labels[0] == labels[1] else " and ".join(labels)
            overlap = float(overlaps[first, second])
            self._add(kind, f"{what}: IoU {overlap:.2f}", position, boxes[[first, second]], overlap)

    def _add(self, kind: str, detail: str, position: int, boxes: NDArray[np.float32], score: float) -> None:
        shown = ShownImage(position, boxes=tuple(tuple(box) for box in boxes.tolist()))
        self._report.add(DatasetFinding(kind, detail, score, (shown,)))


def add(report: CheckReport, kind: str, detail: str, score: float) -> None:
    """Record a finding that is about no image."""
    report.add(DatasetFinding(kind, detail, float(score)))


def _size_and_aspect(box: Sequence[float], width: int, height: int) -> tuple[float, float] | None:
    """log(sqrt(relative area)) and log(width / height) of a box; None for one without area."""
    across, down = box[2] - box[0], box[3] - box[1]
    if across <= 0 or down <= 0:
        return None
    return float(np.log(np.sqrt(across * down / (width * height)))), float(np.log(across / down))


def _overlaps(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """IoU of boxes (n, 4) with each other: (n, n) float32."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.asarray(shared / np.maximum(area[:, None] + area[None, :] - shared, 1e-6), np.float32)
