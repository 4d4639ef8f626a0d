"""Match the objects of all annotators of a task: in one pass over all pairs of annotators, where that decides it.

One pass decides a pair of annotators if each object of the one with fewer has its match, and no two want the same.
Badly drawn objects, and those that both lack, are matched two by two (`object_matching`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate, combinations, compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry.oks import oks_pairs
from labelloop.labeling.geometry.overlap import MAX_DENSE_SHAPES, ROUNDING, Floats, Indices, Pairs, iou_between
from labelloop.labeling.geometry.shapes import Polygon, Rectangle
from labelloop.labeling.region import Region
from qc_webhooks.agreement.answers import Span
from qc_webhooks.agreement.conflicts import find_objects
from qc_webhooks.agreement.matching import MatchedPair, label_agreement, label_gains, match_labelled
from qc_webhooks.agreement.metrics import Tolerance
from qc_webhooks.agreement.object_matching import ObjectMatching, bounds_of_regions, close_pairs, match_objects
from qc_webhooks.agreement.similarity import span_similarities

Thing = Region | Span


class PlainAgreement(NamedTuple):
    """Two annotators whose objects match plainly, without per-region answers.

    Attributes:
        measured: Soft F1 by overlap, as in ``METRICS``.
        deciding: The same, where objects that are drawn alike overlap fully.
        is_perfect: Whether they have the same objects, with the same labels, all drawn alike.
    """

    measured: float
    deciding: float
    is_perfect: bool


class TaskMatching:
    """The matchings of the objects of one control between all pairs of annotators.

    Args:
        things: Objects of each annotator.
        kind: Kind of ``METRICS``: regions, keypoints or spans.
        tolerance: Overlap thresholds and the tolerance in pixels.
        overlap: Minimum overlap of two objects that are drawn alike.

    Raises:
        TooLargeToJudge: Too many regions overlap.
    """

    def __init__(self, things: Sequence[Sequence[Thing]], kind: str, tolerance: Tolerance, overlap: float) -> None:
        self._things, self._tolerance = things, tolerance
        self._matcher = _MATCHERS[kind]
        self._matchings: dict[tuple[int, int], ObjectMatching] = {}
        count = sum(map(len, things))
        is_dense = kind == "regions" and 0 < count <= MAX_DENSE_SHAPES and len(things) > 1
        self._pass = _OnePass(things, tolerance, overlap) if is_dense else None  # type: ignore[arg-type]

    def __getitem__(self, pair: tuple[int, int]) -> ObjectMatching:
        """The matching of two annotators, the first before the second."""
        if pair not in self._matchings:
            self._matchings[pair] = self._match(*pair)
        return self._matchings[pair]

    def all(self) -> Mapping[tuple[int, int], ObjectMatching]:
        """The matchings of all pairs of annotators."""
        return {pair: self[pair] for pair in combinations(range(len(self._things)), 2)}

    def plain(self, first: int, second: int) -> PlainAgreement | None:
        """The agreement of two annotators; None where it takes their matching to know."""
        return self._pass.plain.get((first, second)) if self._pass else None

    def _match(self, first: int, second: int) -> ObjectMatching:
        a, b = self._things[first], self._things[second]
        if self._pass is None or not (a and b):
            return self._matcher(a, b, self._tolerance)
        if (first, second) in self._pass.decided:
            return self._pass.matching(first, second)
        return match_objects(a, b, self._pass.overlaps(first, second), self._tolerance)  # type: ignore[arg-type]


class _OnePass:
    """All overlaps of a task at once, and what they decide.

    Attributes:
        decided: The pairs of annotators whose matching is decided.
        plain: Their agreement, where no region has answers of its own.
    """

    def __init__(self, things: Sequence[Sequence[Region]], tolerance: Tolerance, overlap: float) -> None:
        regions = [region for owned in things for region in owned]
        self._counts, self._tolerance = [len(owned) for owned in things], tolerance
        self._first = [0, *accumulate(self._counts)]
        owners, self._owners = _owners_of(tuple(self._counts))
        shapes = [region.geometry for region in regions]
        pairs, bounds, are_upright = iou_between(shapes, owners, min_iou=tolerance.near_iou)
        if len({region.item_index for region in regions}) > 1 or len({region.to_name for region in regions}) > 1:
            images = {(region.to_name, region.item_index) for region in regions}
            numbers = dict(zip(images, range(len(images)), strict=True))
            scope = np.array([numbers[region.to_name, region.item_index] for region in regions])
            pairs = pairs.where(scope[pairs.rows] == scope[pairs.columns])
        self._pairs, self._numbers = pairs, self._number(pairs)
        above = pairs.values >= tolerance.match_iou - ROUNDING
        same, labels = pairs.where(above), _label_agreements(regions, pairs)[above]
        kept, undecided = self._best(same, labels)
        self._same, self._labels = same.where(kept), labels[kept]
        self._same_numbers = self._numbers[above][kept]
        is_exact = are_upright or set(map(type, shapes)) <= _EXACT
        self._close = self._are_close(regions, bounds if is_exact else None, are_upright=are_upright)
        self.decided = self._decided(undecided)
        self.plain: dict[tuple[int, int], PlainAgreement] = {}
        if not any(region.attributes for region in regions):
            self.plain = self._agreements(overlap)

    def overlaps(self, first: int, second: int) -> Pairs:
        """The overlapping pairs of two annotators, by the numbers of their regions."""
        rows, columns, values = self._pairs.where(self._numbers == first * len(self._counts) + second)
        return Pairs(rows - self._first[first], columns - self._first[second], values)

    def matching(self, first: int, second: int) -> ObjectMatching:
        """The matching of a decided pair of annotators."""
        chosen = np.flatnonzero(self._same_numbers == first * len(self._counts) + second)
        rows = (self._same.rows[chosen] - self._first[first]).tolist()
        columns = (self._same.columns[chosen] - self._first[second]).tolist()
        values = self._same.values[chosen].tolist(), self._labels[chosen].tolist()
        same = tuple(map(MatchedPair, rows, columns, *values))
        is_close = self._close[chosen].tolist()
        close = frozenset(compress(zip(rows, columns, strict=True), is_close))
        only_a, only_b = (
            tuple(sorted(set(range(self._counts[owner])).difference(matched)))
            for owner, matched in ((first, rows), (second, columns))
        )
        return ObjectMatching(same, (), only_a, only_b, close)

    def _number(self, pairs: Pairs) -> Indices:
        """The number of the pair of annotators of each pair of regions, (n,)."""
        numbers: Indices = self._owners[pairs.rows] * len(self._counts) + self._owners[pairs.columns]
        return numbers

    def _are_close(self, regions: Sequence[Region], bounds: Floats | None, *, are_upright: bool) -> NDArray[np.bool_]:
        """Whether each pair of the same object is drawn alike within the tolerance in pixels."""
        if self._tolerance.pixels <= 0 or not len(self._same.rows):
            return np.zeros(len(self._same.rows), dtype=bool)
        bounds = bounds_of_regions(regions, bounds)
        both = bounds, bounds
        return close_pairs(regions, regions, both, self._same, self._tolerance, are_upright=are_upright)[0]

    def _best(self, same: Pairs, labels: Floats) -> tuple[NDArray[np.bool_], frozenset[int]]:
        """Which of the pairs of the same object are matched, (n,), and the pairs of annotators where it is open.

        Where each region's best partner is another, no other matching has a larger sum.
        """
        people = len(self._counts)
        at_row = same.rows * people + self._owners[same.columns]
        at_column = same.columns * people + self._owners[same.rows]
        kept = np.ones(len(at_row), dtype=bool)
        if _are_unique(at_row) and _are_unique(at_column):
            return kept, frozenset()
        gains = label_gains(same.values, labels)
        order = np.lexsort((-gains, at_row))
        keys, ordered = at_row[order], gains[order]
        again = keys[1:] == keys[:-1]
        kept[order[1:][again]] = False
        ties = at_row[order[1:][again & (ordered[1:] >= ordered[:-1] - ROUNDING)]]
        numbers = self._number(same)
        columns, counts = np.unique(at_column[kept], return_counts=True)
        is_open = np.isin(at_row, ties) | np.isin(at_column, columns[counts > 1])
        return kept, frozenset(numbers[is_open].tolist())

    def _decided(self, undecided: frozenset[int]) -> frozenset[tuple[int, int]]:
        people = len(self._counts)
        counts = np.bincount(self._same_numbers, minlength=people * people).tolist()
        return frozenset(
            (first, second)
            for first, second in combinations(range(people), 2)
            if counts[first * people + second] == min(self._counts[first], self._counts[second])
            and first * people + second not in undecided
        )

    def _agreements(self, overlap: float) -> dict[tuple[int, int], PlainAgreement]:
        people, numbers = len(self._counts), self._same_numbers
        deciding = np.where(self._close, 1.0, self._same.values)
        is_alike = (deciding >= overlap) & (self._labels == 1)
        measured, decisive, alike = (
            np.bincount(numbers, weights, people * people).tolist()
            for weights in (self._same.values * self._labels, deciding * self._labels, is_alike)
        )
        found = {}
        for first, second in self.decided:
            number, count_a, count_b = first * people + second, self._counts[first], self._counts[second]
            total = count_a + count_b
            found[first, second] = PlainAgreement(
                2 * measured[number] / total if total else 1.0,
                2 * decisive[number] / total if total else 1.0,
                count_a == count_b == alike[number],
            )
        return found


@lru_cache(maxsize=256)
def _owners_of(counts: tuple[int, ...]) -> tuple[tuple[int, ...], Indices]:
    """The annotator of each region, as a tuple and as an array, from the number of regions of each."""
    owners = tuple(owner for owner, count in enumerate(counts) for _ in range(count))
    return owners, np.array(owners, dtype=np.intp)


def _label_agreements(regions: Sequence[Region], pairs: Pairs) -> Floats:
    """Label agreement of each pair of regions, (n,)."""
    agreements: Floats = np.ones(len(pairs.rows))
    labels = {region.labels for region in regions}
    if len(labels) > 1:
        numbers = dict(zip(labels, range(len(labels)), strict=True))
        number = np.array([numbers[region.labels] for region in regions])
        for index in np.flatnonzero(number[pairs.rows] != number[pairs.columns]).tolist():
            agreements[index] = label_agreement(regions[pairs.rows[index]], regions[pairs.columns[index]])
    return agreements


def _are_unique(keys: Indices) -> bool:
    return len(set(keys.tolist())) == len(keys)


# Shapes whose outlines have the bounds of the shapes.
_EXACT = frozenset({Rectangle, Polygon})


def _match_spans(a: Sequence[Span], b: Sequence[Span], tolerance: Tolerance) -> ObjectMatching:
    if not (a and b):
        return ObjectMatching((), (), tuple(range(len(a))), tuple(range(len(b))))
    matching = match_labelled(a, b, span_similarities(a, b), match=tolerance.match_iou, near=tolerance.near_iou)
    return ObjectMatching(matching.same, matching.near, matching.only_a, matching.only_b)


# Kind of METRICS with single objects -> how those of two annotators are matched.
_MATCHERS: Mapping[str, Callable[..., ObjectMatching]] = {
    "regions": find_objects,
    "keypoints": partial(find_objects, similarity=oks_pairs),
    "spans": _match_spans,
}
OBJECT_KINDS = tuple(_MATCHERS)
