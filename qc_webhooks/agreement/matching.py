"""Match the regions of two annotators one to one, by geometry first and label second."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry.overlap import ROUNDING, Pairs, iou_pairs, is_one_to_one, match_pairs
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


class MatchedPair(NamedTuple):
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
    if len({image_of(item) for item in (*a, *b)}) > 1:
        pairs = zip(candidates.rows.tolist(), candidates.columns.tolist(), strict=True)
        candidates = candidates.where(
            np.array([image_of(a[row]) == image_of(b[column]) for row, column in pairs], dtype=bool)
        )
    if is_one_to_one(candidates):
        return _all_candidates(a, b, candidates, match)
    labels = _label_agreements(a, b, candidates)
    shape = len(a), len(b)
    same = _assign(candidates, labels, match, shape)
    near_pairs: tuple[MatchedPair, ...] = ()
    if len(same) < min(shape):
        unpaired = ~np.isin(candidates.rows, [pair.a for pair in same]) & ~np.isin(
            candidates.columns, [pair.b for pair in same]
        )
        near_pairs = _assign(candidates.where(unpaired), labels[unpaired], near, shape)
    return _matching(a, b, same, near_pairs)


def _all_candidates(a: Sequence[Labelled], b: Sequence[Labelled], candidates: Pairs, match: float) -> Matching:
    """The matching where no region has two candidates: every candidate."""
    columns = (column.tolist() for column in candidates)
    pairs = [
        MatchedPair(row, column, value, label_agreement(a[row], b[column]))
        for row, column, value in zip(*columns, strict=True)
    ]
    same = tuple(pair for pair in pairs if pair.iou >= match - ROUNDING)
    return _matching(a, b, same, tuple(pair for pair in pairs if pair.iou < match - ROUNDING))


def _matching(
    a: Sequence[Labelled], b: Sequence[Labelled], same: tuple[MatchedPair, ...], near: tuple[MatchedPair, ...]
) -> Matching:
    paired_a, paired_b = {pair.a for pair in (*same, *near)}, {pair.b for pair in (*same, *near)}
    return Matching(
        same,
        near,
        tuple(index for index in range(len(a)) if index not in paired_a),
        tuple(index for index in range(len(b)) if index not in paired_b),
    )


def label_agreement(a: Labelled, b: Labelled) -> float:
    """Jaccard index of the labels of two regions or spans; 1 if neither has any."""
    if a.labels == b.labels:
        return 1.0
    labels_a, labels_b = set(a.labels), set(b.labels)
    return len(labels_a & labels_b) / len(labels_a | labels_b)


def _label_agreements(a: Sequence[Labelled], b: Sequence[Labelled], pairs: Pairs) -> NDArray[np.float64]:
    """Label agreement of each pair, (n,)."""
    first, second = [item.labels for item in a], [item.labels for item in b]
    agreements = np.ones(len(pairs.rows))
    for index, (row, column) in enumerate(zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True)):
        if first[row] != second[column]:
            agreements[index] = label_agreement(a[row], b[column])
    return agreements


def image_of(item: Labelled) -> tuple[str, int]:
    """The object and the image of the task that an item is on."""
    return item.to_name, getattr(item, "item_index", 0)


def label_gains(values: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a matching sums up: similarities, with their labels' agreement to break ties, (n,)."""
    gains: NDArray[np.float64] = values * (1 + _LABEL_WEIGHT * labels)
    return gains


def _assign(
    candidates: Pairs, labels: NDArray[np.float64], threshold: float, shape: tuple[int, int]
) -> tuple[MatchedPair, ...]:
    threshold -= ROUNDING
    above = candidates.values >= threshold
    if not above.all():
        candidates, labels = candidates.where(above), labels[above]
    gains = Pairs(candidates.rows, candidates.columns, label_gains(candidates.values, labels))
    chosen = match_pairs(gains, shape, threshold=threshold)
    pairs = zip(
        zip(candidates.rows.tolist(), candidates.columns.tolist(), strict=True),
        zip(candidates.values.tolist(), labels.tolist(), strict=True),
        strict=True,
    )
    if len(chosen) == len(candidates.rows):  # each candidate, in order
        return tuple(MatchedPair(*pair, *values) for pair, values in pairs)
    values_of = dict(pairs)
    return tuple(MatchedPair(*pair, *values_of[pair]) for pair in chosen)
