"""Which region of one annotator is which region of the other: one to one, geometry first, label second."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.overlap import iou_matrix
from labelloop.labeling.overlap import match as best_match
from labelloop.labeling.regions import Region


class Thing(Protocol):
    """Whatever has labels and lies on an object of the task."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels."""

    @property
    def to_name(self) -> str:
        """The object that it lies on."""


# Breaks ties between equal shapes by their labels; far below any overlap that matters.
_LABEL_WEIGHT = 1e-6
# An overlap of exactly the least must count, whichever of two shapes is asked about first.
_ROUNDING = 1e-9


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
    overlaps = iou_matrix([region.geometry for region in a], [region.geometry for region in b], least=near_iou)
    return match_things(a, b, overlaps, match=match_iou, near=near_iou)


def match_things(
    a: Sequence[Thing], b: Sequence[Thing], similarity: NDArray[np.float64], *, match: float, near: float
) -> Matching:
    """Pairs any labelled things of two annotators so that the sum of similarities is greatest.

    Args:
        a: Things of the first annotator, at least one.
        b: Things of the second, at least one.
        similarity: How alike each two are, of shape ``(len(a), len(b))``, 0 to 1.
        match: Least similarity of two that are the same, above 0.
        near: Least similarity of two that are named together as a bad fit.
    """
    overlaps = similarity
    if len({_place(each) for each in (*a, *b)}) > 1:
        overlaps = np.where(_same_place(a, b), overlaps, 0.0)
    labels = np.zeros_like(overlaps)
    for row, column in np.argwhere(overlaps >= near - _ROUNDING):
        labels[row, column] = label_agreement(a[row], b[column])
    same = _assign(overlaps, labels, match)
    nearly: tuple[Pair, ...] = ()
    if len(same) < min(len(a), len(b)):
        left = overlaps.copy()
        left[[pair.a for pair in same], :] = 0.0
        left[:, [pair.b for pair in same]] = 0.0
        nearly = _assign(left, labels, near)
    paired = (*same, *nearly)
    return Matching(
        same,
        nearly,
        tuple(sorted(set(range(len(a))) - {pair.a for pair in paired})),
        tuple(sorted(set(range(len(b))) - {pair.b for pair in paired})),
    )


def label_agreement(a: Thing, b: Thing) -> float:
    """Share of labels that two things have in common (Jaccard index); 1 where neither has one."""
    if a.labels == b.labels:
        return 1.0
    one, other = set(a.labels), set(b.labels)
    return len(one & other) / len(one | other)


def _same_place(a: Sequence[Thing], b: Sequence[Thing]) -> NDArray[np.bool_]:
    """(n, m): whether two things lie on the same image of the task."""
    return np.array([[_place(one) == _place(other) for other in b] for one in a], dtype=bool)


def _place(thing: Thing) -> tuple[str, int]:
    return thing.to_name, getattr(thing, "item_index", 0)


def _assign(overlaps: NDArray[np.float64], labels: NDArray[np.float64], least: float) -> tuple[Pair, ...]:
    least -= _ROUNDING
    enough = overlaps >= least
    if not enough.any():
        return ()
    gains = np.where(enough, overlaps * (1 + _LABEL_WEIGHT * labels), 0.0)
    return tuple(Pair(i, j, float(overlaps[i, j]), float(labels[i, j])) for i, j in best_match(gains, threshold=least))
