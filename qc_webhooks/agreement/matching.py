"""Match the regions of two annotators one to one, by geometry first and label second."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry.overlap import ROUNDING, Pairs, iou_pairs, match_pairs
from labelloop.labeling.region import Region


class Labelled(Protocol):
    """A labelled region or span of an object of the task."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels."""

    @property
    def to_name(self) -> str:
        """Name of the object."""


# Breaks ties between equal shapes by their labels; far below any relevant overlap.
_LABEL_WEIGHT = 1e-6


@dataclass(frozen=True)
class MatchedPair:
    """Two matched regions.

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
    """A one-to-one matching; every region of both annotators occurs once.

    Attributes:
        same: Pairs with an overlap of at least ``match_iou``.
        near: Pairs of the remaining regions with an overlap of at least ``near_iou``.
        only_a: Indices of unmatched regions of the first annotator.
        only_b: Indices of unmatched regions of the second annotator.
    """

    same: tuple[MatchedPair, ...]
    near: tuple[MatchedPair, ...]
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]


def match_regions(a: Sequence[Region], b: Sequence[Region], *, match_iou: float, near_iou: float) -> Matching:
    """Match the regions of two annotators with the greatest sum of overlaps (Hungarian method).

    Labels only break ties between shapes that fit equally well: a wrong label on the right box is a label conflict, not
    a missing and an extra box.

    Args:
        a: Regions of the first annotator, pixels.
        b: Regions of the second annotator, pixels.
        match_iou: Minimum overlap of the same object, above 0.
        near_iou: Minimum overlap of a pair that is reported as a bad fit.
    """
    if not a or not b:
        return Matching((), (), tuple(range(len(a))), tuple(range(len(b))))
    similarities = iou_pairs([region.geometry for region in a], [region.geometry for region in b], min_iou=near_iou)
    return match_labelled(a, b, similarities, match=match_iou, near=near_iou)


def match_labelled(
    a: Sequence[Labelled], b: Sequence[Labelled], similarities: Pairs, *, match: float, near: float
) -> Matching:
    """Match any labelled regions or spans of two annotators with the greatest sum of similarities.

    Args:
        a: Those of the first annotator, at least one.
        b: Those of the second, at least one.
        similarities: Similarities in [0, 1]; pairs below ``near`` may be omitted.
        match: Minimum similarity of the same object, above 0.
        near: Minimum similarity of a pair that is reported as a bad fit.
    """
    candidates = similarities.where(similarities.values >= near - ROUNDING)
    if len({_image_of(item) for item in (*a, *b)}) > 1:
        pairs = zip(candidates.rows.tolist(), candidates.columns.tolist(), strict=True)
        candidates = candidates.where(
            np.array([_image_of(a[row]) == _image_of(b[column]) for row, column in pairs], dtype=bool)
        )
    labels = _label_agreements(a, b, candidates)
    shape = len(a), len(b)
    same = _assign(candidates, labels, match, shape)
    near_pairs: tuple[MatchedPair, ...] = ()
    if len(same) < min(shape):
        unpaired = ~np.isin(candidates.rows, [pair.a for pair in same]) & ~np.isin(
            candidates.columns, [pair.b for pair in same]
        )
        near_pairs = _assign(candidates.where(unpaired), labels[unpaired], near, shape)
    paired = (*same, *near_pairs)
    return Matching(
        same,
        near_pairs,
        tuple(sorted(set(range(len(a))) - {pair.a for pair in paired})),
        tuple(sorted(set(range(len(b))) - {pair.b for pair in paired})),
    )


def label_agreement(a: Labelled, b: Labelled) -> float:
    """Jaccard index of the labels of two regions or spans; 1 if neither has any."""
    if a.labels == b.labels:
        return 1.0
    labels_a, labels_b = set(a.labels), set(b.labels)
    return len(labels_a & labels_b) / len(labels_a | labels_b)


def _label_agreements(a: Sequence[Labelled], b: Sequence[Labelled], pairs: Pairs) -> NDArray[np.float64]:
    """Label agreement of each pair, (n,); computed only for pairs with different labels."""
    label_ids: dict[tuple[str, ...], int] = {}
    ids_a, ids_b = (np.array([label_ids.setdefault(item.labels, len(label_ids)) for item in items]) for items in (a, b))
    agreements = np.ones(len(pairs.rows))
    for index in np.flatnonzero(ids_a[pairs.rows] != ids_b[pairs.columns]).tolist():
        agreements[index] = label_agreement(a[pairs.rows[index]], b[pairs.columns[index]])
    return agreements


def _image_of(item: Labelled) -> tuple[str, int]:
    return item.to_name, getattr(item, "item_index", 0)


def _assign(
    candidates: Pairs, labels: NDArray[np.float64], threshold: float, shape: tuple[int, int]
) -> tuple[MatchedPair, ...]:
    threshold -= ROUNDING
    above = candidates.values >= threshold
    candidates, labels = candidates.where(above), labels[above]
    gains = Pairs(candidates.rows, candidates.columns, candidates.values * (1 + _LABEL_WEIGHT * labels))
    chosen = match_pairs(gains, shape, threshold=threshold)
    # Pairs are sorted by row, then column: find the position of each chosen pair.
    keys = candidates.rows * shape[1] + candidates.columns
    positions = np.searchsorted(keys, [row * shape[1] + column for row, column in chosen]).tolist()
    return tuple(
        MatchedPair(*pair, float(candidates.values[position]), float(labels[position]))
        for pair, position in zip(chosen, positions, strict=True)
    )
