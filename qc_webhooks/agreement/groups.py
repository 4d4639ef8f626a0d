"""One region where the other annotator drew several, and one object drawn twice by the same annotator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from labelloop.labeling.clusters import TWICE
from labelloop.labeling.geometry import Ellipse, KeyPoint
from labelloop.labeling.overlap import box_iou, iou_matrix
from labelloop.labeling.regions import Region

# How much of a part must lie inside the whole.
INSIDE = 0.8
# How well the whole must fit the bounds of its parts together; more than it fits any of them alone.
FITS = 0.6
# Parts of one thing lie beside each other: what overlaps more is one thing drawn twice.
APART = 0.5

Alike = Callable[[Sequence[Region], Sequence[Region]], NDArray[np.float64]]


@dataclass(frozen=True)
class Group:
    """Several regions of one annotator that are one region of the other.

    Attributes:
        several: Indices of the parts.
        one: Index of the whole.
        iou: Overlap of the whole's bounds with those of all its parts.
    """

    several: tuple[int, ...]
    one: int
    iou: float


def find_groups(parts: Sequence[Region], wholes: Sequence[Region], *, match_iou: float) -> tuple[Group, ...]:
    """Regions of ``wholes`` that cover two or more of ``parts``, which nothing else of ``wholes`` matches.

    Args:
        parts: Regions of one annotator.
        wholes: Regions of the other.
        match_iou: Overlap from which a part has a match of its own.

    Returns:
        Groups, each part in one at most.
    """
    if len(parts) < 2 or not wholes:
        return ()
    inside = _inside(parts, wholes)
    if not ((inside >= INSIDE).sum(axis=0) >= 2).any():
        return ()
    overlaps = iou_matrix([part.geometry for part in parts], [whole.geometry for whole in wholes])
    groups: list[Group] = []
    taken: set[int] = set()
    for one in np.argsort(-inside.sum(axis=0), kind="stable").tolist():
        others = np.delete(overlaps, one, axis=1).max(axis=1, initial=0.0)
        several = [
            place
            for place in np.flatnonzero((inside[:, one] >= INSIDE) & (others < match_iou)).tolist()
            if place not in taken
        ]
        if len(several) < 2 or _meet([parts[place] for place in several]):
            continue
        bounds = np.array([parts[place].geometry.bounds for place in several])
        around = np.concatenate((bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)))
        fit = float(box_iou(around[None], np.array([wholes[one].geometry.bounds]))[0, 0])
        if fit >= FITS and fit > overlaps[several, one].max() + 1e-6:
            groups.append(Group(tuple(several), one, fit))
            taken.update(several)
    return tuple(groups)


def find_duplicates(
    regions: Sequence[Region], unmatched: Sequence[int], *, alike: Alike | None = None, least: float = TWICE
) -> dict[int, int]:
    """Unmatched regions that the same annotator drew a second time: index -> index of the other.

    Args:
        regions: All regions of the annotator.
        unmatched: Places of those that the other annotator has nothing for.
        alike: How alike each two of them are, as a matrix; by default how much they overlap.
        least: From which likeness on two are one object drawn twice.
    """
    found: dict[int, int] = {}
    if not unmatched or len(regions) < 2:
        return found
    overlaps = (alike or _overlap)([regions[place] for place in unmatched], regions)
    for row, place in enumerate(unmatched):
        for other in np.argsort(-overlaps[row], kind="stable").tolist():
            if overlaps[row, other] < least:
                break
            same_place = _place(regions[other]) == _place(regions[place])
            if (
                other != place
                and other not in found
                and same_place
                and _labels(regions, other) == _labels(regions, place)
            ):
                found[place] = other
                break
    return found


def _inside(parts: Sequence[Region], wholes: Sequence[Region]) -> NDArray[np.float64]:
    """(n, m): share of each part's area that lies in each whole; upright bounds first, true shapes where they meet."""
    inside = np.zeros((len(parts), len(wholes)))
    a = np.array([part.geometry.bounds for part in parts])
    b = np.array([whole.geometry.bounds for whole in wholes])
    shared = np.clip(
        np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2]), 0, None
    ).prod(axis=-1)
    areas = (a[:, 2:] - a[:, :2]).prod(axis=1)[:, None]
    bounded = np.divide(shared, areas, out=np.zeros_like(shared), where=areas > 0)
    for i, j in np.argwhere(bounded >= INSIDE / 2).tolist():
        if _place(parts[i]) != _place(wholes[j]) or isinstance(parts[i].geometry, KeyPoint):
            continue
        inside[i, j] = bounded[i, j] if _upright(parts[i]) and _upright(wholes[j]) else _share(parts[i], wholes[j])
    return inside


def _share(part: Region, whole: Region) -> float:
    outline, shape = part.geometry.polygon(), whole.geometry
    # An ellipse around two things leaves out their outer corners; it is meant as far as its bounds go.
    around = shapely.box(*shape.bounds) if isinstance(shape, Ellipse) else shape.polygon()
    return float(shapely.intersection(outline, around).area / outline.area) if outline.area else 0.0


def _overlap(a: Sequence[Region], b: Sequence[Region]) -> NDArray[np.float64]:
    return iou_matrix([each.geometry for each in a], [each.geometry for each in b])


def _meet(parts: Sequence[Region]) -> bool:
    return bool((_overlap(parts, parts)[np.triu_indices(len(parts), 1)] >= APART).any())


def _upright(region: Region) -> bool:
    return not getattr(region.geometry, "rotation", 1.0) and hasattr(region.geometry, "height")


def _place(region: Region) -> tuple[str, int]:
    return region.to_name, region.item_index


def _labels(regions: Sequence[Region], place: int) -> frozenset[str]:
    return frozenset(regions[place].labels)
