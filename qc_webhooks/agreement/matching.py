"""Which region of one annotator is which region of the other: one to one, geometry first, label second."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.overlap import iou_matrix, match
from labelloop.labeling.regions import Region

# Breaks ties between equal shapes by their labels; far below any overlap that matters.
_LABEL_WEIGHT = 1e-6


@dataclass(frozen=True)
class Pair:
    """Two regions taken for the same object.

    Attributes:
        a: Index of the region of the first annotator.
        b: Index of the region of the second annotator.
        iou: Overlap of their shapes, 0 to 1.
        labels: Agreement of their labels, 0 to 1.
    """

    a: int
    b: int
    iou: float
    labels: float


@dataclass(frozen=True)
class Matching:
    """Every region of both, each in one place.

    Attributes:
        same: Pairs that overlap at least ``match_iou``.
        near: Pairs of what is left that overlap at least ``near_iou``.
        only_a: Indices of regions that the second annotator has nothing for.
        only_b: Indices of regions that the first annotator has nothing for.
    """

    same: tuple[Pair, ...]
    near: tuple[Pair, ...]
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]


def match_regions(a: Sequence[Region], b: Sequence[Region], *, match_iou: float, near_iou: float) -> Matching:
    """Pairs the regions of two annotators so that the sum of overlaps is greatest (Hungarian method).

    The label does not decide who is paired with whom, except between shapes that fit equally well: a wrong label on
    the right box is a label conflict, not a missing and an extra box.

    Args:
        a: Regions of the first annotator, pixels.
        b: Regions of the second annotator, pixels.
        match_iou: Least overlap of two regions that are the same object, above 0.
        near_iou: Least overlap of two regions that are named together as a bad fit.
    """
    if not a or not b:
        return Matching((), (), tuple(range(len(a))), tuple(range(len(b))))
    overlaps = iou_matrix([region.geometry for region in a], [region.geometry for region in b])
    if len({(region.to_name, region.item_index) for region in (*a, *b)}) > 1:
        overlaps = np.where(_same_place(a, b), overlaps, 0.0)
    labels = np.zeros_like(overlaps)
    for row, column in np.argwhere(overlaps >= near_iou):
        labels[row, column] = label_agreement(a[row], b[column])
    same = _assign(overlaps, labels, match_iou)
    near: tuple[Pair, ...] = ()
    if len(same) < min(len(a), len(b)):
        left = overlaps.copy()
        left[[pair.a for pair in same], :] = 0.0
        left[:, [pair.b for pair in same]] = 0.0
        near = _assign(left, labels, near_iou)
    paired = (*same, *near)
    return Matching(
        same,
        near,
        tuple(sorted(set(range(len(a))) - {pair.a for pair in paired})),
        tuple(sorted(set(range(len(b))) - {pair.b for pair in paired})),
    )


def label_agreement(a: Region, b: Region) -> float:
    """Share of labels that two regions have in common (Jaccard index); 1 where neither has one."""
    if a.labels == b.labels:
        return 1.0
    one, other = set(a.labels), set(b.labels)
    return len(one & other) / len(one | other)


def _same_place(a: Sequence[Region], b: Sequence[Region]) -> NDArray[np.bool_]:
    """(n, m): whether two regions lie on the same image of the task."""
    return np.array(
        [[(one.to_name, one.item_index) == (other.to_name, other.item_index) for other in b] for one in a], dtype=bool
    )


def _assign(overlaps: NDArray[np.float64], labels: NDArray[np.float64], least: float) -> tuple[Pair, ...]:
    enough = overlaps >= least
    if not enough.any():
        return ()
    gains = np.where(enough, overlaps * (1 + _LABEL_WEIGHT * labels), 0.0)
    return tuple(Pair(i, j, float(overlaps[i, j]), float(labels[i, j])) for i, j in match(gains, threshold=least))
