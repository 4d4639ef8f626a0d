"""One region where the other annotator drew several, and one object drawn twice by the same annotator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from labelloop.labeling.consensus.clustering import DUPLICATE_IOU
from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.overlap import Pairs, areas_of, box_iou, gather, meeting, overlaps
from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Mask, Polygon, Rectangle
from labelloop.labeling.studio.regions import Region

# How much of a part must lie inside the whole.
INSIDE = 0.8
# How well the whole must fit the bounds of its parts together; more than it fits any of them alone.
FITS = 0.6
# Parts of one thing lie beside each other: what overlaps more is one thing drawn twice.
APART = 0.5

_ROUNDING = 1e-6
_NOTHING = Rectangle(0.0, 0.0, 0.0, 0.0)

# Corners of outlines that are cut with others at most, one pair after the other.
_MOST_CORNERS = 10_000_000


class Alike(Protocol):
    """How alike regions are, pair by pair; what is less alike than ``least`` is left out."""

    def __call__(self, a: Sequence[Region], b: Sequence[Region], *, least: float) -> Pairs:
        """Of the regions ``a`` with the regions ``b``."""


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

    Raises:
        TooLargeToJudge: Too many regions lie in each other for groups to be told.
    """
    if len(parts) < 2 or not wholes:
        return ()
    near = _near(parts, wholes)
    if not _may_hold_two(parts, wholes, near):
        return ()
    inside = _inside(parts, wholes, near)
    within = inside.where(inside.values >= INSIDE)
    held = np.bincount(within.columns, minlength=len(wholes))
    if not (held >= 2).any():
        return ()
    within = within.where(held[within.columns] >= 2)
    places, row = np.unique(within.rows, return_inverse=True)
    fits = overlaps([parts[place].geometry for place in places.tolist()], [whole.geometry for whole in wholes])
    matches = np.bincount(fits.rows[fits.values >= match_iou], minlength=len(places))
    fit_it = fits.at(row, within.columns, len(wholes))
    alone = matches[row] == (fit_it >= match_iou)  # no other whole matches the part
    by_whole = np.argsort(within.columns, kind="stable")
    starts = np.searchsorted(within.columns[by_whole], np.arange(len(wholes) + 1))
    groups: list[Group] = []
    taken: set[int] = set()
    for one in np.argsort(-np.bincount(inside.columns, inside.values, len(wholes)), kind="stable").tolist():
        if held[one] < 2:
            continue
        some = by_whole[starts[one] : starts[one + 1]]
        some = some[alone[some]]
        several = dict(zip(within.rows[some].tolist(), fit_it[some].tolist(), strict=True))
        several = {place: fit for place, fit in several.items() if place not in taken}
        if len(several) < 2 or _meet([parts[place] for place in several]):
            continue
        bounds = np.array([parts[place].geometry.bounds for place in several])
        around = np.concatenate((bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)))
        fit = float(box_iou(around[None], np.array([wholes[one].geometry.bounds]))[0, 0])
        if fit >= FITS and fit > max(several.values()) + 1e-6:
            groups.append(Group(tuple(several), one, fit))
            taken.update(several)
    return tuple(groups)


def find_duplicates(
    regions: Sequence[Region], unmatched: Sequence[int], *, alike: Alike | None = None, least: float = DUPLICATE_IOU
) -> dict[int, int]:
    """Unmatched regions that the same annotator drew a second time: index -> index of the other.

    Args:
        regions: All regions of the annotator.
        unmatched: Places of those that the other annotator has nothing for.
        alike: How alike two of them are; by default how much they overlap.
        least: From which likeness on two are one object drawn twice.
    """
    found: dict[int, int] = {}
    if not unmatched or len(regions) < 2:
        return found
    near = (alike or _overlap)([regions[place] for place in unmatched], regions, least=least)
    near = near.where(near.values >= least)
    order = np.lexsort((-near.values, near.rows))  # the most alike first, of equals the first drawn
    for row, other in zip(near.rows[order].tolist(), near.columns[order].tolist(), strict=True):
        place = unmatched[row]
        if (
            place not in found
            and other != place
            and other not in found
            and _place(regions[other]) == _place(regions[place])
            and _labels(regions, other) == _labels(regions, place)
        ):
            found[place] = other
    return found


def _near(parts: Sequence[Region], wholes: Sequence[Region]) -> Pairs:
    """Share of each part's bounds that lies in each whole's bounds, of those on one object and image that count.

    Raises:
        TooLargeToJudge: Too many meet.
    """
    a = np.array([part.geometry.bounds for part in parts])
    b = np.array([whole.geometry.bounds for whole in wholes])
    areas = (a[:, 2:] - a[:, :2]).prod(axis=1)

    def bounded() -> Iterator[Pairs]:
        for rows, columns in meeting(a, b):
            low, high = np.maximum(a[rows, :2], b[columns, :2]), np.minimum(a[rows, 2:], b[columns, 2:])
            shared, area = np.clip(high - low, 0, None).prod(axis=-1), areas[rows]
            values = np.divide(shared, area, out=np.zeros_like(shared), where=area > 0)
            yield Pairs(rows, columns, values).where(values >= INSIDE / 2)

    found = gather(bounded())
    numbers: dict[tuple[str, int], int] = {}
    ours, theirs = ([numbers.setdefault(_place(each), len(numbers)) for each in regions] for regions in (parts, wholes))
    no_points = np.array([not isinstance(part.geometry, KeyPoint) for part in parts])
    return found.where((np.array(ours)[found.rows] == np.array(theirs)[found.columns]) & no_points[found.rows])


def _may_hold_two(parts: Sequence[Region], wholes: Sequence[Region], near: Pairs) -> bool:
    """Whether any whole can hold two of the parts, by their bounds and areas: mostly none, and nothing is to be cut."""
    bounds = np.array([part.geometry.bounds for part in parts])
    shapes = [part.geometry for part in parts]
    plain = np.array([isinstance(shape, Rectangle | Polygon | Ellipse) for shape in shapes])
    areas = areas_of([shape if is_plain else _NOTHING for shape, is_plain in zip(shapes, plain.tolist(), strict=True)])
    around = (bounds[:, 2:] - bounds[:, :2]).prod(axis=1)
    # No part shares more with a whole than their bounds do; of what has no area, nothing is known.
    most = np.divide(around, areas, out=np.full(len(parts), np.inf), where=plain & (areas > 0))
    held = near.columns[near.values * most[near.rows] >= INSIDE - _ROUNDING]
    return bool((np.bincount(held, minlength=len(wholes)) >= 2).any())


def _inside(parts: Sequence[Region], wholes: Sequence[Region], near: Pairs) -> Pairs:
    """Share of each part's area that lies in each whole; upright bounds first, true shapes where they meet.

    Raises:
        TooLargeToJudge: Too many corners of them.
    """
    found = near
    upright = [np.array([_upright(each) for each in regions]) for regions in (parts, wholes)]
    cut = ~(upright[0][found.rows] & upright[1][found.columns])
    if not cut.any():
        return found
    canvas = [np.array([_canvas(each) for each in regions]) for regions in (parts, wholes)]
    painted = cut & (canvas[0][found.rows] > 0) & (canvas[0][found.rows] == canvas[1][found.columns])
    found.values[painted] = _pixel_shares(parts, wholes, found.where(painted))
    if not painted[cut].all():
        found.values[cut & ~painted] = _shares(parts, wholes, found.where(cut & ~painted))
    return found


def _canvas(region: Region) -> int:
    """A number for the size of the image that a mask is painted on; 0 of what is no mask."""
    shape = region.geometry
    return shape.width << 32 | shape.height if isinstance(shape, Mask) else 0


def _pixel_shares(parts: Sequence[Region], wholes: Sequence[Region], pairs: Pairs) -> NDArray[np.float64]:
    found = np.zeros(len(pairs.rows))
    starts = np.flatnonzero(np.diff(pairs.rows, prepend=-1)).tolist()
    for start, end in pairwise((*starts, len(found))):
        those = [wholes[place].geometry.coco for place in pairs.columns[start:end].tolist()]
        part = parts[pairs.rows[start]].geometry.coco
        # Against what COCO calls a crowd the overlap is counted in shares of the first.
        found[start:end] = coco.iou([part], those, [1] * len(those))[0]
    return found


def _shares(parts: Sequence[Region], wholes: Sequence[Region], pairs: Pairs) -> NDArray[np.float64]:
    outlines, around = np.full(len(parts), None, dtype=object), np.full(len(wholes), None, dtype=object)
    for place in np.unique(pairs.rows).tolist():
        outlines[place] = parts[place].geometry.polygon()
    for place in np.unique(pairs.columns).tolist():
        shape = wholes[place].geometry
        # An ellipse around two things leaves out their outer corners; it is meant as far as its bounds go.
        around[place] = shapely.box(*shape.bounds) if isinstance(shape, Ellipse) else shape.polygon()
    one, other = outlines[pairs.rows], around[pairs.columns]
    if shapely.get_num_coordinates(one).sum() + shapely.get_num_coordinates(other).sum() > _MOST_CORNERS:
        raise TooLargeToJudge("its outlines that overlap have too many corners")
    areas = shapely.area(one)
    shared = shapely.area(shapely.intersection(one, other))
    found: NDArray[np.float64] = np.divide(shared, areas, out=np.zeros_like(shared), where=areas > 0)
    return found


def _overlap(a: Sequence[Region], b: Sequence[Region], *, least: float) -> Pairs:
    return overlaps([each.geometry for each in a], [each.geometry for each in b], least=least)


def _meet(parts: Sequence[Region]) -> bool:
    found = _overlap(parts, parts, least=APART)
    return bool(((found.rows < found.columns) & (found.values >= APART)).any())


def _upright(region: Region) -> bool:
    return not getattr(region.geometry, "rotation", 1.0) and hasattr(region.geometry, "height")


def _place(region: Region) -> tuple[str, int]:
    return region.to_name, region.item_index


def _labels(regions: Sequence[Region], place: int) -> frozenset[str]:
    return frozenset(regions[place].labels)
