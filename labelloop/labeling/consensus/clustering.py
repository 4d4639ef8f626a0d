"""Cluster the regions of several annotators into objects, with at most one region of each annotator per cluster."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.oks import object_size, oks_pairs
from labelloop.labeling.geometry.overlap import Indices, Pairs, collect_pairs, concat_pairs, iou_pairs
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Region

# Regions of a task over all annotators; a task with more is too large to judge.
MAX_REGIONS = 60_000

# Minimum average IoU within a cluster. Low: a badly drawn region still marks the object.
MIN_IOU = 0.2

# IoU from which two regions of one annotator with the same labels are duplicates.
DUPLICATE_IOU = 0.75

# Minimum OKS (see ``oks_pairs``) of two key points in one cluster: within about a quarter of the object's size.
MIN_OKS = 0.5

# Far below any difference of IoU that matters: labels break ties between equal overlaps.
_LABEL_WEIGHT = 1e-6
# Up to this number of regions all overlaps are stored; above it only those that can decide, the others on demand.
DENSE_LIMIT = 1000
# Default IoU from which quality control reports two regions as a poor match.
_MIN_POLICY_IOU = 0.1


class Member(msgspec.Struct, frozen=True, order=True, gc=False):
    """One region of a cluster: ``regions_by_annotator[annotator][region]``."""

    annotator: int
    region: int


Cluster = tuple[Member, ...]


def cluster_regions(
    regions_by_annotator: Sequence[Sequence[Region]], *, min_iou: float = MIN_IOU
) -> tuple[Cluster, ...]:
    """Cluster the regions of several annotators into objects by geometry; labels break ties.

    Constrained average linkage: the two clusters with the highest average IoU are merged while that is at least
    ``min_iou``, never two with a region of the same annotator. The order of annotators and regions does not matter.
    Duplicates by one annotator are removed first: each of the two would attract some of the other regions, and split
    one object into two.

    Args:
        regions_by_annotator: All regions of each annotator; only those of one control, object tag and image merge.
        min_iou: Minimum average IoU of merged clusters, above 0.

    Returns:
        Clusters that partition the regions, ordered by their first members.

    Raises:
        TooLargeToJudge: There are more than ``MAX_REGIONS``, or too many of them overlap.
    """
    members = [
        Member(annotator, index)
        for annotator, regions in enumerate(regions_by_annotator)
        for index in range(len(regions))
    ]
    if not members:
        return ()
    check_count(len(members))
    similarities = _SimilarityTable(
        [regions_by_annotator[member.annotator][member.region] for member in members], members, min_iou
    )
    pairs, annotators, duplicates = similarities.pairs, similarities.annotators, _duplicates(similarities)
    linked = pairs.where(
        (pairs.values >= min_iou)
        & (annotators[pairs.rows] != annotators[pairs.columns])
        & ~(duplicates[pairs.rows] | duplicates[pairs.columns])
    )
    starts = np.searchsorted(linked.rows, np.arange(len(members) + 1)).tolist()
    links = [slice(*bounds) for bounds in pairwise(starts)]
    clusters: list[Cluster] = []
    for component in _components(linked.columns, links):
        count = sum(links[index].stop - links[index].start for index in component)
        # In a complete component all regions overlap: one cluster.
        is_complete = count == len(component) * (len(component) - 1)
        groups = [component] if is_complete else _average_linkage(component, linked, links, similarities, min_iou)
        clusters += (tuple(sorted(members[index] for index in group)) for group in groups)
    return tuple(sorted(clusters))


def check_size(regions_by_annotator: Sequence[Sequence[Region]]) -> None:
    """Check that the regions of a task can be compared in bounded time and memory; faster than comparing them.

    Args:
        regions_by_annotator: All regions of each annotator.

    Raises:
        TooLargeToJudge: There are more than ``MAX_REGIONS``, or too many of them overlap.
    """
    count = sum(map(len, regions_by_annotator))
    check_count(count)
    if count <= DENSE_LIMIT:
        return
    groups = _groups([region for regions in regions_by_annotator for region in regions])
    collect_pairs(_similar_pairs([region for _, region in group]) for group in groups)


def _similar_pairs(regions: Sequence[Region]) -> Pairs:
    if all(isinstance(region.geometry, KeyPoint) for region in regions):
        return oks_pairs(regions, regions, least=MIN_OKS)
    shapes = [region.geometry for region in regions]
    return iou_pairs(shapes, shapes, min_iou=_MIN_POLICY_IOU, upper_triangle=True)


def check_count(count: int) -> None:
    """Check that a task has at most `MAX_REGIONS` regions or spans.

    Raises:
        TooLargeToJudge: It has more.
    """
    if count > MAX_REGIONS:
        raise TooLargeToJudge(f"{count:,} regions, at most {MAX_REGIONS:,} are compared")


def _groups(regions: Sequence[Region]) -> list[list[tuple[int, Region]]]:
    """The regions by control, object tag and image, each with its index; only regions of one group can match."""
    groups: dict[tuple[str, str, int], list[tuple[int, Region]]] = {}
    for index, region in enumerate(regions):
        groups.setdefault((region.control, region.to_name, region.item_index), []).append((index, region))
    return list(groups.values())


def _components(columns: Indices, links: Sequence[slice]) -> Iterator[list[int]]:
    """Connected components of the linked regions. Plain Python: faster than scipy for a few dozen regions."""
    visited: set[int] = set()
    for start in range(len(links)):
        if start in visited:
            continue
        visited.add(start)
        group = [start]
        for index in group:
            unvisited = [neighbour for neighbour in columns[links[index]].tolist() if neighbour not in visited]
            visited.update(unvisited)
            group += unvisited
        yield sorted(group)


class _SimilarityTable:
    """Pairwise similarity (IoU; OKS for key points) of a task's regions of one control, object tag and image.

    Attributes:
        annotators: The annotator of each region, (n,).
        label_ids: A number for the labels of each region, (n,).
        is_exact: Whether all similarities are stored, in both directions: rounding may differ by direction.
        pairs: The similarities, with a tiny bonus for equal labels. For many regions, those too small to merge
            clusters or to make duplicates are missing; ``between`` measures them.
    """

    def __init__(self, regions: Sequence[Region], members: Sequence[Member], min_iou: float) -> None:
        self.annotators = np.array([member.annotator for member in members], dtype=np.intp)
        numbers: dict[frozenset[str], int] = {}
        self.label_ids = np.array([numbers.setdefault(frozenset(region.labels), len(numbers)) for region in regions])
        self._shapes = [region.geometry for region in regions]
        self.groups = [np.array([index for index, _ in group]) for group in _groups(regions)]
        self.is_exact = len(regions) <= DENSE_LIMIT
        self._points = np.zeros(len(regions), dtype=bool)
        for group in self.groups:
            self._points[group] = all(isinstance(self._shapes[index], KeyPoint) for index in group.tolist())
        # The label bonus must not exclude a pair.
        floor = 0.0 if self.is_exact else min(min_iou, DUPLICATE_IOU / 2) * (1 - 2 * _LABEL_WEIGHT)
        pairs = self._with_label_bonus(
            concat_pairs([self._within_group(group, regions, floor) for group in self.groups])
        )
        order = np.lexsort((pairs.columns, pairs.rows))
        self.pairs = Pairs(*(column[order] for column in pairs))
        self._keys = self.pairs.rows * len(regions) + self.pairs.columns

    def of(self, rows: Indices, columns: Indices) -> Pairs:
        """Similarities of some regions with others of their group; only the stored ones if there are too many."""
        if not self._are_stored(columns):
            with suppress(TooLargeToJudge):
                return self._measure(rows, columns)
        return self.pairs.where(np.isin(self.pairs.rows, rows) & np.isin(self.pairs.columns, columns))

    def between(self, first: Sequence[int], second: Sequence[int]) -> dict[tuple[int, int], float]:
        """Similarities of a few regions with others of their group, in both directions, by (row, column)."""
        rows, columns = np.array(first), np.array(second)
        if not self._are_stored(columns):
            measured = self._measure(rows, columns)
            return _as_dict(measured) | _as_dict(Pairs(measured.columns, measured.rows, measured.values))
        table: dict[tuple[int, int], float] = {}
        for left, right in ((rows, columns), (columns, rows)):
            keys = (left[:, None] * len(self._shapes) + right).ravel()
            positions = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            held = self.pairs.where(positions[self._keys[positions] == keys])
            table |= _as_dict(held)
        return table

    def _are_stored(self, indices: Indices) -> bool:
        """Whether all relevant similarities of a group are in ``pairs``; those of key points always are."""
        return self.is_exact or bool(self._points[indices[0]])

    def _measure(self, rows: Indices, columns: Indices) -> Pairs:
        left, right = ([self._shapes[index] for index in indices.tolist()] for indices in (rows, columns))
        pairs = iou_pairs(left, right)
        return self._with_label_bonus(Pairs(rows[pairs.rows], columns[pairs.columns], pairs.values))

    def _within_group(self, group: Indices, regions: Sequence[Region], floor: float) -> Pairs:
        members = [regions[index] for index in group.tolist()]
        if self._points[group[0]]:
            # Key points are compared by distance: their discs only serve display and seldom overlap.
            owners = self.annotators[group]
            points_by_annotator = [
                [members[index] for index in np.flatnonzero(owners == owner)] for owner in np.unique(owners)
            ]
            pairs = oks_pairs(members, members, least=MIN_OKS, size=object_size(points_by_annotator))
            pairs = pairs.where(pairs.values >= MIN_OKS)
        else:
            shapes = [region.geometry for region in members]
            pairs = iou_pairs(shapes, shapes, min_iou=floor, upper_triangle=not self.is_exact)
            if not self.is_exact:
                pairs = concat_pairs((pairs, Pairs(pairs.columns, pairs.rows, pairs.values)))
        return Pairs(group[pairs.rows], group[pairs.columns], pairs.values)

    def _with_label_bonus(self, pairs: Pairs) -> Pairs:
        same = self.label_ids[pairs.rows] == self.label_ids[pairs.columns]
        return pairs._replace(values=pairs.values * (1 + _LABEL_WEIGHT * same))


def _duplicates(similarities: _SimilarityTable) -> NDArray[np.bool_]:
    """(n,): duplicates by one annotator that no other annotator drew twice; of two, the one that fits others less."""
    annotators, label_ids = similarities.annotators, similarities.label_ids
    duplicates = np.zeros(len(annotators), dtype=bool)
    rows, columns, values = similarities.pairs
    own = annotators[rows] == annotators[columns]
    repeated = similarities.pairs.where(
        own & (rows < columns) & (values >= DUPLICATE_IOU) & (label_ids[rows] == label_ids[columns])
    )
    if not repeated.rows.size:
        return duplicates
    first, shared = np.zeros_like(duplicates), np.zeros_like(duplicates)
    first[repeated.rows] = True
    shared[rows[~own & first[columns] & (values >= DUPLICATE_IOU / 2)]] = True
    repeated = repeated.where(~shared[repeated.rows])
    candidates = np.unique(np.concatenate((repeated.rows, repeated.columns)))
    near = concat_pairs([similarities.of(group[np.isin(group, candidates)], group) for group in similarities.groups])
    fits = dict.fromkeys(candidates.tolist(), 0.0)
    order = np.argsort(near.rows, kind="stable")
    bounds = np.searchsorted(near.rows[order], [candidates, candidates + 1])
    for index, start, end in zip(candidates.tolist(), *bounds.tolist(), strict=True):
        overlap = np.zeros(len(annotators))
        overlap[near.columns[order[start:end]]] = near.values[order[start:end]]
        overlap[annotators == annotators[index]] = 0.0
        fits[index] = float(overlap.sum())
    for left, right in zip(repeated.rows.tolist(), repeated.columns.tolist(), strict=True):
        if not (duplicates[left] or duplicates[right]):
            duplicates[left if fits[left] < fits[right] else right] = True
    return duplicates


# Merge history of a cluster: (step, left, right, left size, right size), or (0, region).
_Tree = tuple[Any, ...]


def _average_linkage(
    component: Sequence[int], linked: Pairs, links: Sequence[slice], similarities: _SimilarityTable, min_iou: float
) -> list[list[int]]:
    """Constrained average linkage of one component; a cluster has the id of its first merged region."""
    groups = {index: [index] for index in component}
    group_of = {index: index for index in component}
    owners = {index: {int(similarities.annotators[index])} for index in component}
    trees: dict[int, _Tree] = {index: (0, index) for index in component}
    # Number of merges of each cluster, to detect outdated heap entries; merged clusters are removed.
    merge_counts = dict.fromkeys(component, 0)
    initial = [
        (-value, index, right, 0)
        for index in component
        for right, value in zip(
            linked.columns[links[index]].tolist(), linked.values[links[index]].tolist(), strict=True
        )
        if index < right or similarities.is_exact
    ]
    initial.sort(reverse=True)
    heap: list[tuple[float, int, int, int]] = []
    step = 0
    while initial or heap:
        # Highest similarity first, ties by index; pairs of single regions are sorted once.
        first = not heap or (initial and initial[-1] < heap[0])
        _, left, right, merge_count = initial.pop() if first else heappop(heap)
        if (
            left not in merge_counts
            or right not in merge_counts
            or merge_count != merge_counts[left] + merge_counts[right]
        ):
            continue
        step += 1
        trees[left] = (step, trees[left], trees[right], len(groups[left]), len(groups[right]))
        groups[left] += groups.pop(right)
        owners[left] |= owners.pop(right)
        group_of.update(dict.fromkeys(groups[left], left))
        merge_counts[left] += 1
        del merge_counts[right], trees[right]
        neighbours = {group_of[index] for member in groups[left] for index in linked.columns[links[member]].tolist()}
        neighbours = {
            neighbour for neighbour in neighbours if neighbour != left and not owners[neighbour] & owners[left]
        }
        if not neighbours:
            continue
        values = similarities.between(groups[left], [index for neighbour in neighbours for index in groups[neighbour]])
        for neighbour in neighbours:
            value = _average_similarity(trees[left], trees[neighbour], values)
            if value >= min_iou:
                heappush(
                    heap,
                    (-value, min(left, neighbour), max(left, neighbour), merge_counts[left] + merge_counts[neighbour]),
                )
    return list(groups.values())


def _as_dict(pairs: Pairs) -> dict[tuple[int, int], float]:
    keys = zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True)
    return dict(zip(keys, pairs.values.tolist(), strict=True))


def _average_similarity(a: _Tree, b: _Tree, values: Mapping[tuple[int, int], float]) -> float:
    """Average similarity of two clusters, computed recursively along their merge history."""
    if a[0] == b[0] == 0:
        return values.get((a[1], b[1]), 0.0)
    newer, other = (a, b) if a[0] > b[0] else (b, a)
    _, first, second, n, m = newer
    return float(
        (n * _average_similarity(first, other, values) + m * _average_similarity(second, other, values)) / (n + m)
    )
