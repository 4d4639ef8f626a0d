"""Object keypoint similarity (OKS) of single key points: distance relative to the size of their object."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry.overlap import ROUNDING, Pairs, collect_pairs, intersecting_boxes
from labelloop.labeling.geometry.shapes import KeyPoint

Matrix = NDArray[np.float64]

# Standard deviation of a point, in object sizes: about COCO's sigma of hips and shoulders, its least precise points.
OKS_SIGMA = 0.1
# Points needed to estimate the object's size; with fewer, it is a quarter of the image's side.
_MIN_POINTS, _FALLBACK_SIZE = 3, 0.25


class PointOnImage(Protocol):
    """A key point with the size of its image in pixels, such as a `Region`."""

    @property
    def geometry(self) -> Any:
        """The `KeyPoint`."""

    @property
    def width(self) -> int:
        """The image's width."""

    @property
    def height(self) -> int:
        """The image's height."""


def oks_pairs(
    a: Sequence[PointOnImage], b: Sequence[PointOnImage], *, least: float, size: float | None = None
) -> Pairs:
    """Pairs of similar key points: OKS = exp(-d^2 / (2 s^2 (2 sigma)^2)), see cocodataset.org/#keypoints-eval.

    Args:
        a: Key points.
        b: Key points on the same image.
        least: Pairs with a lower OKS are left out; above 0.
        size: The size s of the object in pixels. Default: ``object_size`` of the points of both.

    Raises:
        TooLargeToJudge: There are more than ``MAX_PAIRS``.
    """
    size = object_size((a, b)) if size is None else size
    left, right, scale = _coordinates(a), _coordinates(b), 2 * (size * 2 * OKS_SIGMA) ** 2
    reach = math.sqrt(-math.log(least / 2) * scale)  # slightly too far, never too near

    def blocks() -> Iterator[Pairs]:
        for rows, columns in intersecting_boxes(np.hstack((left - reach, left + reach)), np.hstack((right, right))):
            values = np.exp(-((left[rows] - right[columns]) ** 2).sum(axis=-1) / scale)
            yield Pairs(rows, columns, values).where(values >= least - ROUNDING)

    return collect_pairs(blocks())


def object_size(points_by_annotator: Sequence[Sequence[PointOnImage]]) -> float:
    """Estimate the size in pixels of the object with these key points; Label Studio does not store it.

    It is the square root of the area around the points of all annotators, if each has at least three; otherwise a
    quarter of that of the image.

    Args:
        points_by_annotator: The points of each annotator, at least one each.
    """
    everything = _coordinates([point for points in points_by_annotator for point in points])
    extent = float(np.sqrt(np.prod(everything.max(axis=0) - everything.min(axis=0))))
    if min(len(points) for points in points_by_annotator) >= _MIN_POINTS and extent > 0:
        return extent
    return float(np.sqrt(points_by_annotator[0][0].width * points_by_annotator[0][0].height)) * _FALLBACK_SIZE


def _coordinates(points: Sequence[PointOnImage]) -> Matrix:
    shapes = [point.geometry for point in points]
    return np.array([(shape.x, shape.y) for shape in shapes if isinstance(shape, KeyPoint)], dtype=np.float64)
