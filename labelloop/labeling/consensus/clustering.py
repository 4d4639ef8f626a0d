"""Which regions of several annotators are one object: clusters with at most one region of each annotator."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.oks import alike_points, object_size
from labelloop.labeling.geometry.overlap import Pairs, Places, gather, joined, overlaps
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Region

MOST_REGIONS = 60_000
"""Regions of a task, all annotators' together: more are a task too large to judge."""

# The overlap from which two regions may be one object. Low: a second annotator who draws badly still saw the object.
LEAST_OVERLAP = 0.2

# Overlap of two regions of one annotator, with the same labels, that are one object drawn twice.
DUPLICATE_IOU = 0.75

# From which likeness (see ``alike_points``) on two key points may be one: within a quarter of what they lie on.
LEAST_LIKENESS = 0.5

# Far below any overlap that matters: between shapes that fit equally well the label decides.
_LABEL_WEIGHT = 1e-6
# Up to so many regions all overlaps are held; of more only those that decide, the others are measured when asked for.
_FEW = 1000
# Overlap from which quality control speaks of two regions as a bad fit, unless a policy says otherwise.
_LEAST_NEAR = 0.1


class Member(msgspec.Struct, frozen=True, order=True, gc=False):
    """One region of a cluster: ``regions[annotator][region]`` of what was clustered."""

    annotator: int
    region: int


Cluster = tuple[Member, ...]


def cluster_regions(stances: Sequence[Sequence[Region]], *, least: float = LEAST_OVERLAP) -> tuple[Cluster, ...]:
    """Groups the regions of several annotators into objects, geometry first, label second.

    Average linkage: the two clusters whose regions overlap most on average are joined as long as that is at least
    ``least``, never two that hold a region of the same annotator. The result depends on nobody's order. What only one
    annotator drew twice is set aside first: each of the two would draw some of the others to itself, and one object
    would become two.

    Args:
        stances: For each annotator all regions; only those on one control, object and image are ever joined.
        least: Least average overlap (IoU) of what is joined, above 0.

    Returns:
        Every region in exactly one cluster, ordered by their first members.

    Raises:
        TooLargeToJudge: There are more than ``MOST_REGIONS``, or too many of them overlap.
    """
    members = [Member(who, place) for who, regions in enumerate(stances) for place in range(len(regions))]
    if not members:
        return ()
    check_count(len(members))
    found = _Overlaps([stances[member.annotator][member.region] for member in members], members, least)
    pairs, annotators, twins = found.pairs, found.annotators, _duplicates(found)
    linked = pairs.where(
        (pairs.values >= least)
        & (annotators[pairs.rows] != annotators[pairs.columns])
        & ~(twins[pairs.rows] | twins[pairs.columns])
    )
    starts = np.searchsorted(linked.rows, np.arange(len(members) + 1)).tolist()
    links = [slice(*bounds) for bounds in pairwise(starts)]
    clusters: list[Cluster] = []
    for places in _components(linked.columns, links):
        count = sum(links[place].stop - links[place].start for place in places)
        # Where all of them overlap there is nothing to decide.
        whole = count == len(places) * (len(places) - 1)
        groups = [places] if whole else _average_linkage(places, linked, links, found, least)
        clusters += (tuple(sorted(members[place] for place in group)) for group in groups)
    return tuple(sorted(clusters))


def check_size(stances: Sequence[Sequence[Region]]) -> None:
    """Whether the regions of a task can be compared in bounded time and memory: it takes less time than to do it.

    Args:
        stances: For each annotator all regions.

    Raises:
        TooLargeToJudge: There are more than ``MOST_REGIONS``, or too many of them overlap.
    """
    count = sum(map(len, stances))
    check_count(count)
    if count <= _FEW:
        return
    groups = _groups([region for regions in stances for region in regions])
    gather(_near([region for _, region in group]) for group in groups)


def _near(regions: Sequence[Region]) -> Pairs:
    if all(isinstance(region.geometry, KeyPoint) for region in regions):
        return alike_points(regions, regions, least=LEAST_LIKENESS)
    shapes = [region.geometry for region in regions]
    return overlaps(shapes, shapes, least=_LEAST_NEAR, once=True)


def check_count(count: int) -> None:
    """Whether a task has too many regions or spans to be compared.

    Raises:
        TooLargeToJudge: It has.
    """
    if count > MOST_REGIONS:
        raise TooLargeToJudge(f"{count:,} regions, at most {MOST_REGIONS:,} are compared")


def _groups(regions: Sequence[Region]) -> list[list[tuple[int, Region]]]:
    """Regions of one control, object and image, each with its place; others never are one object."""
    groups: dict[tuple[str, str, int], list[tuple[int, Region]]] = {}
    for place, region in enumerate(regions):
        groups.setdefault((region.control, region.to_name, region.item_index), []).append((place, region))
    return list(groups.values())


def _components(columns: Places, links: Sequence[slice]) -> Iterator[list[int]]:
    """Groups of regions that are linked, directly or by others. In plain Python: of thirty scipy takes longer."""
    seen: set[int] = set()
    for start in range(len(links)):
        if start in seen:
            continue
        seen.add(start)
        group = [start]
        for place in group:
            fresh = [each for each in columns[links[place]].tolist() if each not in seen]
            seen.update(fresh)
            group += fresh
        yield sorted(group)


class _Overlaps:
    """How much the regions of a task overlap: those of one control, object and image.

    Attributes:
        annotators: Whose each region is.
        names: A number for the labels of each.
        is_exact: Whether all overlaps are held as they were measured, of each two both ways: float arithmetic may say
            more one way than the other.
        pairs: The overlaps, of regions of the same labels a trifle more. Of many regions those are missing that are
            too small to join two of them or to make one the twin of another; ``between`` has them too.
    """

    def __init__(self, regions: Sequence[Region], members: Sequence[Member], least: float) -> None:
        self.annotators = np.array([member.annotator for member in members], dtype=np.intp)
        numbers: dict[frozenset[str], int] = {}
        self.names = np.array([numbers.setdefault(frozenset(each.labels), len(numbers)) for each in regions])
        self._shapes = [region.geometry for region in regions]
        self.groups = [np.array([place for place, _ in group]) for group in _groups(regions)]
        self.is_exact = len(regions) <= _FEW
        self._points = np.zeros(len(regions), dtype=bool)
        for group in self.groups:
            self._points[group] = all(isinstance(self._shapes[place], KeyPoint) for place in group.tolist())
        # What the same labels add must not keep a pair from being found.
        floor = 0.0 if self.is_exact else min(least, DUPLICATE_IOU / 2) * (1 - 2 * _LABEL_WEIGHT)
        found = self._weighted(joined([self._within(group, regions, floor) for group in self.groups]))
        order = np.lexsort((found.columns, found.rows))
        self.pairs = Pairs(*(each[order] for each in found))
        self._keys = self.pairs.rows * len(regions) + self.pairs.columns

    def of(self, rows: Places, columns: Places) -> Pairs:
        """Overlaps of some regions with others, all of one control, object and image; of too many the large ones."""
        if not self._are_held(columns):
            with suppress(TooLargeToJudge):
                return self._measured(rows, columns)
        return self.pairs.where(np.isin(self.pairs.rows, rows) & np.isin(self.pairs.columns, columns))

    def between(self, ours: Sequence[int], theirs: Sequence[int]) -> dict[tuple[int, int], float]:
        """The same of a few regions, both ways."""
        rows, columns = np.array(ours), np.array(theirs)
        if not self._are_held(columns):
            found = self._measured(rows, columns)
            return _table(found) | _table(Pairs(found.columns, found.rows, found.values))
        table: dict[tuple[int, int], float] = {}
        for one, other in ((rows, columns), (columns, rows)):
            wanted = (one[:, None] * len(self._shapes) + other).ravel()
            places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            found = self.pairs.where(places[self._keys[places] == wanted])
            table |= _table(found)
        return table

    def _are_held(self, places: Places) -> bool:
        """Whether all that counts of the overlaps of a group is in ``pairs``; of points that are alike it always is."""
        return self.is_exact or bool(self._points[places[0]])

    def _measured(self, rows: Places, columns: Places) -> Pairs:
        ours, theirs = ([self._shapes[place] for place in places.tolist()] for places in (rows, columns))
        found = overlaps(ours, theirs)
        return self._weighted(Pairs(rows[found.rows], columns[found.columns], found.values))

    def _within(self, group: Places, regions: Sequence[Region], floor: float) -> Pairs:
        inner = [regions[place] for place in group.tolist()]
        if self._points[group[0]]:
            # How near points lie to each other: their discs are a matter of display and seldom meet.
            owners = self.annotators[group]
            drawn = [[inner[place] for place in np.flatnonzero(owners == who)] for who in np.unique(owners)]
            found = alike_points(inner, inner, least=LEAST_LIKENESS, size=object_size(drawn))
            found = found.where(found.values >= LEAST_LIKENESS)
        else:
            shapes = [region.geometry for region in inner]
            found = overlaps(shapes, shapes, least=floor, once=not self.is_exact)
            if not self.is_exact:
                found = joined((found, Pairs(found.columns, found.rows, found.values)))
        return Pairs(group[found.rows], group[found.columns], found.values)

    def _weighted(self, found: Pairs) -> Pairs:
        same = self.names[found.rows] == self.names[found.columns]
        return found._replace(values=found.values * (1 + _LABEL_WEIGHT * same))


def _duplicates(found: _Overlaps) -> NDArray[np.bool_]:
    """What somebody drew a second time where nobody else drew two; of both the one that fits others less."""
    annotators, names = found.annotators, found.names
    twins = np.zeros(len(annotators), dtype=bool)
    rows, columns, values = found.pairs
    own = annotators[rows] == annotators[columns]
    twice = found.pairs.where(own & (rows < columns) & (values >= DUPLICATE_IOU) & (names[rows] == names[columns]))
    if not twice.rows.size:
        return twins
    first, shared = np.zeros_like(twins), np.zeros_like(twins)
    first[twice.rows] = True
    shared[rows[~own & first[columns] & (values >= DUPLICATE_IOU / 2)]] = True
    twice = twice.where(~shared[twice.rows])
    concerned = np.unique(np.concatenate((twice.rows, twice.columns)))
    near = joined([found.of(group[np.isin(group, concerned)], group) for group in found.groups])
    fits = dict.fromkeys(concerned.tolist(), 0.0)
    order = np.argsort(near.rows, kind="stable")
    bounds = np.searchsorted(near.rows[order], [concerned, concerned + 1])
    for place, start, end in zip(concerned.tolist(), *bounds.tolist(), strict=True):
        theirs = np.zeros(len(annotators))
        theirs[near.columns[order[start:end]]] = near.values[order[start:end]]
        theirs[annotators == annotators[place]] = 0.0
        fits[place] = float(theirs.sum())
    for one, other in zip(twice.rows.tolist(), twice.columns.tolist(), strict=True):
        if not (twins[one] or twins[other]):
            twins[one if fits[one] < fits[other] else other] = True
    return twins


# How a group came about: when it was joined (a region alone: 0) and from what with how many regions; or the region.
_Tree = tuple[Any, ...]


def _average_linkage(
    places: Sequence[int], linked: Pairs, links: Sequence[slice], found: _Overlaps, least: float
) -> list[list[int]]:
    """Groups of regions, never two of one annotator in one; a group goes by the first of those that were joined."""
    groups = {place: [place] for place in places}
    home = {place: place for place in places}
    owners = {place: {int(found.annotators[place])} for place in places}
    trees: dict[int, _Tree] = {place: (0, place) for place in places}
    # How often a group was joined, so that what was found out before is known to be old; none of it: it is gone.
    turns = dict.fromkeys(places, 0)
    single = [
        (-value, place, other, 0)
        for place in places
        for other, value in zip(
            linked.columns[links[place]].tolist(), linked.values[links[place]].tolist(), strict=True
        )
        if place < other or found.is_exact
    ]
    single.sort(reverse=True)
    joined: list[tuple[float, int, int, int]] = []
    clock = 0
    while single or joined:
        # The most alike, of equals the first; what single regions share is sorted once and for all.
        first = not joined or (single and single[-1] < joined[0])
        _, one, other, turn = single.pop() if first else heappop(joined)
        if one not in turns or other not in turns or turn != turns[one] + turns[other]:
            continue
        clock += 1
        trees[one] = (clock, trees[one], trees[other], len(groups[one]), len(groups[other]))
        groups[one] += groups.pop(other)
        owners[one] |= owners.pop(other)
        home.update(dict.fromkeys(groups[one], one))
        turns[one] += 1
        del turns[other], trees[other]
        near = {home[place] for member in groups[one] for place in linked.columns[links[member]].tolist()}
        near = {each for each in near if each != one and not owners[each] & owners[one]}
        if not near:
            continue
        alike = found.between(groups[one], [place for each in near for place in groups[each]])
        for each in near:
            value = _average(trees[one], trees[each], alike)
            if value >= least:
                heappush(joined, (-value, min(one, each), max(one, each), turns[one] + turns[each]))
    return list(groups.values())


def _table(found: Pairs) -> dict[tuple[int, int], float]:
    pairs = zip(found.rows.tolist(), found.columns.tolist(), strict=True)
    return dict(zip(pairs, found.values.tolist(), strict=True))


def _average(a: _Tree, b: _Tree, alike: Mapping[tuple[int, int], float]) -> float:
    """How much the regions of two groups overlap on average, as it follows from joining them one after the other."""
    if a[0] == b[0] == 0:
        return alike.get((a[1], b[1]), 0.0)
    whole, other = (a, b) if a[0] > b[0] else (b, a)
    _, one, two, n, m = whole
    return float((n * _average(one, other, alike) + m * _average(two, other, alike)) / (n + m))
