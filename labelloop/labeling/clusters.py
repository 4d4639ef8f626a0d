"""Which regions of several annotators are one object: clusters with at most one region of each annotator."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry import KeyPoint
from labelloop.labeling.keypoints import object_size, oks_matrix
from labelloop.labeling.overlap import iou_matrix
from labelloop.labeling.region import Region

# The overlap from which two regions may be one object. Low: a second annotator who draws badly still saw the object.
LEAST_OVERLAP = 0.2

# Overlap of two regions of one annotator, with the same labels, that are one object drawn twice.
TWICE = 0.75

# From which likeness (see ``oks_matrix``) on two key points may be one: within a quarter of what they lie on.
LEAST_LIKENESS = 0.5

# Far below any overlap that matters: between shapes that fit equally well the label decides.
_LABEL_WEIGHT = 1e-6
_FORBIDDEN = -1.0


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
    """
    members = [Member(who, place) for who, regions in enumerate(stances) for place in range(len(regions))]
    if not members:
        return ()
    regions = [stances[member.annotator][member.region] for member in members]
    annotators = np.array([member.annotator for member in members])
    labels = [frozenset(region.labels) for region in regions]
    overlaps = _overlaps(regions, labels, annotators)
    twins = _twins(overlaps, annotators, labels)
    overlaps[annotators[:, None] == annotators[None, :]] = _FORBIDDEN
    overlaps[twins], overlaps[:, twins] = _FORBIDDEN, _FORBIDDEN
    linked = overlaps >= least
    clusters: list[Cluster] = []
    for places in _components(linked):
        if len(places) == 1 or int(linked[np.ix_(places, places)].sum()) == len(places) * (len(places) - 1):
            clusters.append(tuple(sorted(members[place] for place in places)))  # all of them overlap: nothing to decide
            continue
        for group in _average_linkage(overlaps[np.ix_(places, places)], least):
            clusters.append(tuple(sorted(members[places[place]] for place in group)))  # noqa: PERF401 - readable
    return tuple(sorted(clusters))


def _components(linked: NDArray[np.bool_]) -> list[list[int]]:
    """Groups of rows that are linked, directly or by others. In plain Python: of thirty regions scipy takes longer."""
    neighbours: list[list[int]] = [[] for _ in range(len(linked))]
    for one, other in zip(*(each.tolist() for each in np.nonzero(linked)), strict=True):
        neighbours[one].append(other)
    seen: set[int] = set()
    found = []
    for start in range(len(linked)):
        if start in seen:
            continue
        seen.add(start)
        group = [start]
        for place in group:
            fresh = [each for each in neighbours[place] if each not in seen]
            seen.update(fresh)
            group += fresh
        found.append(sorted(group))
    return found


def _twins(overlaps: NDArray[np.float64], annotators: NDArray[np.intp], labels: Sequence[frozenset[str]]) -> list[int]:
    """Rows of what somebody drew a second time where nobody else drew two; of both the one that fits others less."""
    same = annotators[:, None] == annotators[None, :]
    found: list[int] = []
    pairs = np.argwhere(np.triu(same & (overlaps >= TWICE), 1)).tolist()
    twice = [(one, other) for one, other in pairs if labels[one] == labels[other]]
    for one, other in twice:
        theirs = [pair for pair in twice if annotators[pair[0]] != annotators[one]]
        if one in found or other in found or any(overlaps[one, pair[0]] >= TWICE / 2 for pair in theirs):
            continue
        fits = np.where(same[one], 0.0, np.maximum(overlaps, 0.0))
        found.append(one if fits[one].sum() < fits[other].sum() else other)
    return found


def _overlaps(
    regions: Sequence[Region], labels: Sequence[frozenset[str]], annotators: NDArray[np.intp]
) -> NDArray[np.float64]:
    """(n, n) overlaps; ``_FORBIDDEN`` where two are not of one control, object and image."""
    overlaps = np.full((len(regions), len(regions)), _FORBIDDEN)
    places: dict[tuple[str, str, int], list[int]] = {}
    for place, region in enumerate(regions):
        places.setdefault((region.control, region.to_name, region.item_index), []).append(place)
    for group in places.values():
        shapes = [regions[place].geometry for place in group]
        if all(isinstance(shape, KeyPoint) for shape in shapes):
            within = _likeness([regions[place] for place in group], annotators[group])
        else:
            within = iou_matrix(shapes, shapes)
        same = np.array([[labels[one] == labels[other] for other in group] for one in group])
        overlaps[np.ix_(group, group)] = within * (1 + _LABEL_WEIGHT * same)
    return overlaps


def _likeness(points: Sequence[Region], annotators: NDArray[np.intp]) -> NDArray[np.float64]:
    """(n, n): how near key points lie to each other. Their discs are a matter of display and seldom meet."""
    drawn = [[points[place] for place in np.flatnonzero(annotators == who)] for who in np.unique(annotators)]
    found = oks_matrix(points, points, size=object_size(drawn))
    found[found < LEAST_LIKENESS] = 0.0
    return found


def _average_linkage(overlaps: NDArray[np.float64], least: float) -> list[list[int]]:
    """Groups of rows; what is ``_FORBIDDEN`` between two rows is so between their groups."""
    groups: list[list[int]] = [[place] for place in range(len(overlaps))]
    links = overlaps.copy()
    count = len(groups)
    while count > 1:
        one, other = divmod(int(links.argmax()), count)
        if links[one, other] < least:
            break
        sizes = len(groups[one]), len(groups[other])
        joined = (sizes[0] * links[one] + sizes[1] * links[other]) / sum(sizes)
        joined[(links[one] < 0) | (links[other] < 0)] = _FORBIDDEN
        links[one] = links[:, one] = joined
        links[one, one] = _FORBIDDEN
        links[other] = links[:, other] = _FORBIDDEN
        groups[one] += groups[other]
        groups[other] = []
    return [group for group in groups if group]
