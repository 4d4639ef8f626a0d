"""How near key points lie, in proportion to what they lie on: object keypoint similarity."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry.overlap import ROUNDING, Pairs, gather, meeting
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Region

Matrix = NDArray[np.float64]

# A point counts as placed right within about a tenth of the size of what it is a part of (COCO's sigma of hips and
# shoulders, the least exact of its key points).
OKS_SIGMA = 0.1
# So many points tell how large the object is; of fewer, a quarter of the image's side stands for it.
_ENOUGH_POINTS, _PART = 3, 0.25


def alike_points(a: Sequence[Region], b: Sequence[Region], *, least: float, size: float | None = None) -> Pairs:
    """Points that are near each other by object keypoint similarity, exp(-d^2 / (2 s^2 (2 sigma)^2)).

    It is that of cocodataset.org/#keypoints-eval.

    Args:
        a: Key points.
        b: Key points on the same image.
        least: What is less alike is left out; above 0.
        size: The size s of the object, see ``object_size``; by default that of both annotators' points.

    Raises:
        TooLargeToJudge: More than ``MOST_PAIRS`` are alike.
    """
    size = object_size((a, b)) if size is None else size
    ours, theirs, scale = _places(a), _places(b), 2 * (size * 2 * OKS_SIGMA) ** 2
    reach = math.sqrt(-math.log(least / 2) * scale)  # a little farther than it needs to be

    def alike() -> Iterator[Pairs]:
        for rows, columns in meeting(np.hstack((ours - reach, ours + reach)), np.hstack((theirs, theirs))):
            values = np.exp(-((ours[rows] - theirs[columns]) ** 2).sum(axis=-1) / scale)
            yield Pairs(rows, columns, values).where(values >= least - ROUNDING)

    return gather(alike())


def object_size(drawn: Sequence[Sequence[Region]]) -> float:
    """The size of what key points lie on, which Label Studio does not tell, in pixels.

    It is the root of the area around the points of all annotators, where each has three; else a quarter of the image's.

    Args:
        drawn: The points of each annotator, at least one of each.
    """
    everything = _places([point for points in drawn for point in points])
    extent = float(np.sqrt(np.prod(everything.max(axis=0) - everything.min(axis=0))))
    if min(len(points) for points in drawn) >= _ENOUGH_POINTS and extent > 0:
        return extent
    return float(np.sqrt(drawn[0][0].width * drawn[0][0].height)) * _PART


def _places(points: Sequence[Region]) -> Matrix:
    shapes = [point.geometry for point in points]
    return np.array([(shape.x, shape.y) for shape in shapes if isinstance(shape, KeyPoint)], dtype=np.float64)
