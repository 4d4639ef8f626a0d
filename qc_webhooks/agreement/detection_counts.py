"""Detections of one image reduced to the counts that detection alpha and F1 need, at any IoU threshold.

The regions of all annotators are put into correspondence as KaLOS 0.8.0 does (Tschirschwitz and others, "KaLOS", CVPR
2026; matching ``greedy``, cost ``category_lenient``): pairs with at least the overlap of the threshold, those with
equal labels first, then by overlap, join two clusters unless an annotator would be in one twice. Each cluster is a unit
that every annotator of the image rates, with a label or as absent. So with m annotators, R regions and U units there
are m U ratings, of which m U - R are "absent", and observed agreement needs one sum S over units and values of count x
(count - 1): an image is a few integers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry.oks import oks_pairs
from labelloop.labeling.geometry.overlap import ROUNDING, Pairs, collect_pairs, iou_pairs, match_pairs
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Region

# Thresholds of the curve.
THRESHOLDS: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
# Threshold of F1.
F1_IOU = 0.5


class DetectionCounts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Detections of one control on one image, as its sufficient statistics.

    Attributes:
        annotators: Annotators of the image, at least 2.
        labels: Label -> regions with it.
        match_iou: The policy's threshold.
        matched: (units, S) at that threshold.
        curve: (index in ``THRESHOLDS``, units, S) of each threshold whose values differ from the one before.
        f1_matches: Matched pairs of equal labels at an IoU of 0.5, over all pairs of annotators.
    """

    annotators: int
    labels: dict[str, int]
    match_iou: float
    matched: tuple[int, int]
    curve: tuple[tuple[int, int, int], ...]
    f1_matches: int

    @property
    def regions(self) -> int:
        """Number of regions."""
        return sum(self.labels.values())


def count_detections(
    regions: Sequence[Region], owners: Sequence[int], *, annotators: int, match_iou: float
) -> DetectionCounts:
    """Reduce the regions of one control on one image to the counts that detection alpha needs.

    Args:
        regions: The regions of all annotators.
        owners: Index of each region's annotator, below ``annotators``.
        annotators: Number of annotators who looked at the image, at least 2.
        match_iou: The policy's threshold.

    Raises:
        TooLargeToJudge: Too many regions overlap.
    """
    names = [" + ".join(sorted(region.labels)) or "(no label)" for region in regions]
    pairs = _similarities(regions, np.array(owners), least=min(match_iou, THRESHOLDS[0]))
    image = _Image(names, owners, annotators, pairs)
    curve: list[tuple[int, int, int]] = []
    values = image.at((*THRESHOLDS, match_iou))
    for index, value in enumerate(values[:-1]):
        if not curve or curve[-1][1:] != value:
            curve.append((index, *value))
    return DetectionCounts(annotators, dict(Counter(names)), match_iou, values[-1], tuple(curve), image.f1_matches())


def _similarities(regions: Sequence[Region], owners: NDArray[np.intp], *, least: float) -> Pairs:
    """Overlaps of regions of different annotators on the same object and image; OKS for key points."""
    if not regions:
        return collect_pairs([])
    if all(isinstance(region.geometry, KeyPoint) for region in regions):
        pairs = oks_pairs(regions, regions, least=least)
    else:
        shapes = [region.geometry for region in regions]
        pairs = iou_pairs(shapes, shapes, min_iou=least, upper_triangle=True)
    images: dict[tuple[str, int], int] = {}
    scopes = np.array([images.setdefault((item.to_name, item.item_index), len(images)) for item in regions])
    return pairs.where(
        (pairs.rows < pairs.columns)
        & (owners[pairs.rows] != owners[pairs.columns])
        & (scopes[pairs.rows] == scopes[pairs.columns])
    )


class _Image:
    """Correspondence of the regions of one image at several thresholds."""

    def __init__(self, names: Sequence[str], owners: Sequence[int], annotators: int, pairs: Pairs) -> None:
        self._owners, self._annotators = owners, annotators
        ids: dict[str, int] = {}
        self._labels = np.array([ids.setdefault(name, len(ids)) for name in names], dtype=np.intp)
        other = self._labels[pairs.rows] != self._labels[pairs.columns]
        order = np.lexsort((-pairs.values, other))
        self._pairs = pairs.where(order)
        self._other = other[order]

    def at(self, thresholds: Sequence[float]) -> list[tuple[int, int]]:
        """(units, S) at each threshold."""
        counts: dict[int, tuple[int, int]] = {}
        result = []
        for threshold in thresholds:
            pairs = self._pairs.where(self._pairs.values >= threshold - ROUNDING)
            count = len(pairs.rows)
            if count not in counts:
                counts[count] = self._joined(pairs)
            result.append(counts[count])
        return result

    def _joined(self, pairs: Pairs) -> tuple[int, int]:
        """(units, S) with these pairs. Two regions without another partner are joined without a search."""
        absent = self._annotators - 1, self._annotators - 2
        partners = np.bincount(np.concatenate((pairs.rows, pairs.columns)), minlength=len(self._labels))
        is_couple = (partners[pairs.rows] == 1) & (partners[pairs.columns] == 1)
        couples, others = pairs.where(is_couple), pairs.where(~is_couple)
        same = int((self._labels[couples.rows] == self._labels[couples.columns]).sum())
        nodes, numbers = np.unique(np.concatenate((others.rows, others.columns)), return_inverse=True)
        owners = np.array(self._owners, dtype=np.intp)[nodes]
        clusters = _Clusters(self._labels[nodes].tolist(), owners.tolist(), self._annotators)
        rows, columns = numbers.reshape(2, -1).tolist()
        clusters.join(zip(rows, columns, strict=True))
        joined = len(couples.rows)
        single = len(self._labels) - len(nodes) - 2 * joined
        agreeing = single * absent[0] * (absent[0] - 1) + joined * absent[1] * (absent[1] - 1) + 2 * same
        return single + joined + clusters.units, agreeing + clusters.agreeing

    def f1_matches(self) -> int:
        """Matched pairs of equal labels with an IoU of at least 0.5, over all pairs of annotators."""
        same = self._pairs.where(~self._other & (self._pairs.values >= F1_IOU - ROUNDING))
        owners = np.array(self._owners, dtype=np.intp)
        first, second = owners[same.rows], owners[same.columns]
        n = len(self._owners)
        return sum(
            len(match_pairs(both, (n, n), threshold=F1_IOU - ROUNDING))
            for a, b in combinations(range(self._annotators), 2)
            for both in [_oriented(same.where(((first == a) & (second == b)) | ((first == b) & (second == a))), owners)]
        )


def _oriented(pairs: Pairs, owners: NDArray[np.intp]) -> Pairs:
    """The pairs with the annotator of the lower index in the rows, sorted by row."""
    swap = owners[pairs.rows] > owners[pairs.columns]
    rows, columns = np.where(swap, pairs.columns, pairs.rows), np.where(swap, pairs.rows, pairs.columns)
    order = np.lexsort((columns, rows))
    return Pairs(rows[order], columns[order], pairs.values[order])


class _Clusters:
    """Disjoint sets of regions with at most one of each annotator.

    Attributes:
        units: Number of sets.
        agreeing: Sum over the sets and their values ("absent" too) of count x (count - 1).
    """

    def __init__(self, labels: Sequence[int], owners: Sequence[int], annotators: int) -> None:
        self._parents = list(range(len(labels)))
        self._owners = [1 << owner for owner in owners]
        self._counts: list[dict[int, int]] = [{label: 1} for label in labels]
        self._annotators = annotators
        self.units = len(labels)
        self.agreeing = sum(map(self._agreeing, self._counts))

    def join(self, edges: Iterable[tuple[int, int]]) -> None:
        """Join the sets of each pair of regions, in order, unless an annotator has a region in both."""
        for left, right in edges:
            first, second = self._root(left), self._root(right)
            if first == second or self._owners[first] & self._owners[second]:
                continue
            counts, more = self._counts[first], self._counts[second]
            self.agreeing -= self._agreeing(counts) + self._agreeing(more)
            for label, count in more.items():
                counts[label] = counts.get(label, 0) + count
            self.agreeing += self._agreeing(counts)
            self._parents[second] = first
            self._owners[first] |= self._owners[second]
            self.units -= 1

    def _root(self, index: int) -> int:
        while self._parents[index] != index:
            index = self._parents[index]
        return index

    def _agreeing(self, counts: Mapping[int, int]) -> int:
        absent = self._annotators - sum(counts.values())
        return sum(count * (count - 1) for count in counts.values()) + absent * (absent - 1)
