"""Owns slicing: small objects on large photos are looked for part by part, and the parts are put together.

After Akyon et al. 2022, https://arxiv.org/abs/2202.06934: overlapping parts at full resolution, and the whole photo
once for what is larger than a part.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np

from ml_backend.detection.detections import Detections, merge
from ml_backend.detection.preprocess import Photo, prepare
from ml_backend.inference.detector import Detector

SAME = 0.5
"""Overlap above which two boxes of a class from two looks are one object."""

PIECE = 0.75
"""Share of a box inside a larger one of its class above which it is a piece that the edge of a part cut off."""

NEAR_EDGE = 0.01
"""Share of a part's side within which a box ends at its edge."""


@dataclass(frozen=True)
class Slices:
    """How large photos are cut.

    Attributes:
        side: Pixels a side of a part, of the original photo; 0: photos are never cut.
        overlap: Share of a part that its neighbour shows too; objects up to that size are whole in one of them.
    """

    side: int = 0
    overlap: float = 0.2


def parts_of(width: int, height: int, slices: Slices) -> list[tuple[int, int, int, int]]:
    """The parts of a photo: x_min, y_min, x_max, y_max in pixels, row by row; none where one would show all of it.

    All are of one size (where the photo is as large), evenly spread, and overlap by at least the share asked for.
    """
    if slices.side <= 0 or max(width, height) <= slices.side:
        return []
    columns, rows = _starts(width, slices), _starts(height, slices)
    side = slices.side
    return [(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]


def detect_sliced(
    detector: Detector, photo: Photo, slices: Slices, *, floor: float, size: tuple[int, int] | None = None
) -> Detections:
    """What is on a photo: of the whole, and of each part at its own resolution.

    Args:
        detector: Looks at the whole and at the parts, as many at once as it takes.
        photo: (h, w, 3), decoded whole where it is to be cut.
        slices: How it is cut.
        floor: Scores below it are left out.
        size: (width, height) of the original where `photo` is a reduced decode, which is not cut.

    Raises:
        ModelBroken: The engine failed.
    """
    reduced = size is not None and size != (photo.shape[1], photo.shape[0])
    parts = [] if reduced else parts_of(photo.shape[1], photo.shape[0], slices)
    looks: list[tuple[int, int, int, int] | None] = [None, *parts]
    found: list[Detections] = []
    for some in _batches(looks, detector.batch):
        seen = detector.detect([prepare(photo, detector.spec, size=size, part=part) for part in some], floor=floor)
        found += [
            _whole(one, part, photo.shape[1], photo.shape[0]) if part else one
            for one, part in zip(seen, some, strict=True)
        ]
    return merge(found, share=PIECE, iou=SAME) if parts else found[0]


def _whole(found: Detections, part: tuple[int, int, int, int], width: int, height: int) -> Detections:
    """Without the boxes that end where the part ends but the photo goes on: they are pieces.

    What is no larger than the overlap is whole in a neighbour, and what is larger is seen on the whole photo.
    """
    near = max(2.0, NEAR_EDGE * max(part[2] - part[0], part[3] - part[1]))
    limits = (0, 0, width, height)
    cut = np.zeros(len(found), np.bool_)
    for side in range(4):
        if part[side] != limits[side]:
            cut |= np.abs(found.boxes[:, side] - part[side]) <= near
    return found[~cut]


def _starts(length: int, slices: Slices) -> list[int]:
    if length <= slices.side:
        return [0]
    count = ceil((length - slices.side) / max(1.0, slices.side * (1 - slices.overlap))) + 1
    return [round(place * (length - slices.side) / (count - 1)) for place in range(count)]


def _batches(looks: list[tuple[int, int, int, int] | None], count: int) -> list[list[tuple[int, int, int, int] | None]]:
    return [looks[start : start + count] for start in range(0, len(looks), count)]
