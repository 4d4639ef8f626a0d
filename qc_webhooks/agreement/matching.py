"""Which region of one annotator is which region of the other: one to one, geometry first, label second."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry.overlap import ROUNDING, Pairs, match_pairs, overlaps
from labelloop.labeling.studio.regions import Region


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
    found = overlaps([region.geometry for region in a], [region.geometry for region in b], least=near_iou)
    return match_things(a, b, found, match=match_iou, near=near_iou)


def match_things(a: Sequence[Thing], b: Sequence[Thing], alike: Pairs, *, match: float, near: float) -> Matching:
    """Pairs any labelled things of two annotators so that the sum of similarities is greatest.

    Args:
        a: Things of the first annotator, at least one.
        b: Things of the second, at least one.
        alike: How alike they are, 0 to 1; what is less alike than ``near`` may be left out.
        match: Least similarity of two that are the same, above 0.
        near: Least similarity of two that are named together as a bad fit.
    """
    found = alike.where(alike.values >= near - ROUNDING)
    if len({_place(each) for each in (*a, *b)}) > 1:
        pairs = zip(found.rows.tolist(), found.columns.tolist(), strict=True)
        found = found.where(np.array([_place(a[row]) == _place(b[column]) for row, column in pairs], dtype=bool))
    labels = _label_agreements(a, b, found)
    shape = len(a), len(b)
    same = _assign(found, labels, match, shape)
    nearly: tuple[Pair, ...] = ()
    if len(same) < min(shape):
        left = ~np.isin(found.rows, [pair.a for pair in same]) & ~np.isin(found.columns, [pair.b for pair in same])
        nearly = _assign(found.where(left), labels[left], near, shape)
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


def _label_agreements(a: Sequence[Thing], b: Sequence[Thing], pairs: Pairs) -> NDArray[np.float64]:
    """Of each pair; most have the same labels, and need no more than to be known as such."""
    numbers: dict[tuple[str, ...], int] = {}
    ours, theirs = (np.array([numbers.setdefault(each.labels, len(numbers)) for each in things]) for things in (a, b))
    found = np.ones(len(pairs.rows))
    for place in np.flatnonzero(ours[pairs.rows] != theirs[pairs.columns]).tolist():
        found[place] = label_agreement(a[pairs.rows[place]], b[pairs.columns[place]])
    return found


def _place(thing: Thing) -> tuple[str, int]:
    return thing.to_name, getattr(thing, "item_index", 0)


def _assign(found: Pairs, labels: NDArray[np.float64], least: float, shape: tuple[int, int]) -> tuple[Pair, ...]:
    least -= ROUNDING
    enough = found.values >= least
    found, labels = found.where(enough), labels[enough]
    gains = Pairs(found.rows, found.columns, found.values * (1 + _LABEL_WEIGHT * labels))
    chosen = match_pairs(gains, shape, threshold=least)
    # In the order of rows, then of columns: where each pair is.
    keys = found.rows * shape[1] + found.columns
    places = np.searchsorted(keys, [row * shape[1] + column for row, column in chosen]).tolist()
    return tuple(
        Pair(*pair, float(found.values[place]), float(labels[place]))
        for pair, place in zip(chosen, places, strict=True)
    )
