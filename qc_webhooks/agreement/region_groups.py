"""Find merged and split regions between two annotators, and duplicates of one annotator."""

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
from labelloop.labeling.geometry.overlap import (
    Pairs,
    box_iou,
    collect_pairs,
    intersecting_boxes,
    iou_pairs,
    shape_areas,
)
from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Mask, Polygon, Rectangle
from labelloop.labeling.region import Region

# Minimum share of a part's area inside the whole.
MIN_INSIDE = 0.8
# Minimum IoU of the whole's bounds with the bounds of all parts; must also exceed its IoU with any single part.
MIN_BOUNDS_IOU = 0.6
# Maximum overlap of two parts of one object; above it they are duplicates.
MAX_PART_OVERLAP = 0.5

_ROUNDING = 1e-6
_NOTHING = Rectangle(0.0, 0.0, 0.0, 0.0)

# Maximum corners of polygons that are intersected.
_MOST_CORNERS = 10_000_000


class SimilarityFunction(Protocol):
    """Computes similarities of regions, pair by pair; pairs below ``least`` are omitted."""

    def __call__(self, a: Sequence[Region], b: Sequence[Region], *, least: float) -> Pairs:
        """Return the similarities of the regions ``a`` with the regions ``b``."""


@dataclass(frozen=True)
class RegionGroup:
    """Several regions of one annotator that are one region of the other.

    Attributes:
        parts: Indices of the parts.
        whole: Index of the whole.
        iou: IoU of the whole's bounds with the bounds of all parts.
    """

    parts: tuple[int, ...]
    whole: int
    iou: float


def find_groups(parts: Sequence[Region], wholes: Sequence[Region], *, match_iou: float) -> tuple[RegionGroup, ...]:
    """Find regions of ``wholes`` that cover two or more of ``parts`` without a match of their own.

    Args:
        parts: Regions of one annotator.
        wholes: Regions of the other.
        match_iou: Overlap from which a part has its own match.

    Returns:
        Groups; each part is in at most one.

    Raises:
        TooLargeToJudge: Too many regions overlap.
    """
    if len(parts) < 2 or not wholes:
        return ()
    near = _near(parts, wholes)
    if not _may_contain_two(parts, wholes, near):
        return ()
    inside = _inside(parts, wholes, near)
    within = inside.where(inside.values >= MIN_INSIDE)
    contained = np.bincount(within.columns, minlength=len(wholes))
    if not (contained >= 2).any():
        return ()
    within = within.where(contained[within.columns] >= 2)
    part_indices, part_rows = np.unique(within.rows, return_inverse=True)
    fits = iou_pairs([parts[index].geometry for index in part_indices.tolist()], [whole.geometry for whole in wholes])
    matches = np.bincount(fits.rows[fits.values >= match_iou], minlength=len(part_indices))
    part_fits = fits.values_at(part_rows, within.columns, len(wholes))
    unmatched_elsewhere = matches[part_rows] == (part_fits >= match_iou)  # no other whole matches the part
    by_whole = np.argsort(within.columns, kind="stable")
    starts = np.searchsorted(within.columns[by_whole], np.arange(len(wholes) + 1))
    groups: list[RegionGroup] = []
    grouped: set[int] = set()
    for whole in np.argsort(-np.bincount(inside.columns, inside.values, len(wholes)), kind="stable").tolist():
        if contained[whole] < 2:
            continue
        candidates = by_whole[starts[whole] : starts[whole + 1]]
        candidates = candidates[unmatched_elsewhere[candidates]]
        fit_by_part = dict(zip(within.rows[candidates].tolist(), part_fits[candidates].tolist(), strict=True))
        fit_by_part = {part: fit for part, fit in fit_by_part.items() if part not in grouped}
        if len(fit_by_part) < 2 or _have_duplicates([parts[part] for part in fit_by_part]):
            continue
        bounds = np.array([parts[part].geometry.bounds for part in fit_by_part])
        around = np.concatenate((bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)))
        fit = float(box_iou(around[None], np.array([wholes[whole].geometry.bounds]))[0, 0])
        if fit >= MIN_BOUNDS_IOU and fit > max(fit_by_part.values()) + 1e-6:
            groups.append(RegionGroup(tuple(fit_by_part), whole, fit))
            grouped.update(fit_by_part)
    return tuple(groups)


def find_duplicates(
    regions: Sequence[Region],
    unmatched: Sequence[int],
    *,
    similarity: SimilarityFunction | None = None,
    least: float = DUPLICATE_IOU,
) -> dict[int, int]:
    """Find unmatched regions that duplicate another region of the same annotator: index -> index of the other.

    Args:
        regions: All regions of the annotator.
        unmatched: Indices of the regions that the other annotator does not have.
        similarity: Similarity function; default: overlap.
        least: Minimum similarity of duplicates.
    """
    duplicates: dict[int, int] = {}
    if not unmatched or len(regions) < 2:
        return duplicates
    near = (similarity or _overlap)([regions[index] for index in unmatched], regions, least=least)
    near = near.where(near.values >= least)
    order = np.lexsort((-near.values, near.rows))  # most similar first; of equals, the first drawn
    for row, other in zip(near.rows[order].tolist(), near.columns[order].tolist(), strict=True):
        index = unmatched[row]
        if (
            index not in duplicates
            and other != index
            and other not in duplicates
            and _image_of(regions[other]) == _image_of(regions[index])
            and _labels(regions, other) == _labels(regions, index)
        ):
            duplicates[index] = other
    return duplicates


def _near(parts: Sequence[Region], wholes: Sequence[Region]) -> Pairs:
    """Share of each part's bounds inside each whole's bounds, for pairs on the same object and image.

    Raises:
        TooLargeToJudge: Too many bounds overlap.
    """
    a = np.array([part.geometry.bounds for part in parts])
    b = np.array([whole.geometry.bounds for whole in wholes])
    areas = (a[:, 2:] - a[:, :2]).prod(axis=1)

    def bounded() -> Iterator[Pairs]:
        for rows, columns in intersecting_boxes(a, b):
            low, high = np.maximum(a[rows, :2], b[columns, :2]), np.minimum(a[rows, 2:], b[columns, 2:])
            shared, area = np.clip(high - low, 0, None).prod(axis=-1), areas[rows]
            values = np.divide(shared, area, out=np.zeros_like(shared), where=area > 0)
            yield Pairs(rows, columns, values).where(values >= MIN_INSIDE / 2)

    pairs = collect_pairs(bounded())
    image_ids: dict[tuple[str, int], int] = {}
    part_images, whole_images = (
        [image_ids.setdefault(_image_of(region), len(image_ids)) for region in regions] for regions in (parts, wholes)
    )
    not_keypoints = np.array([not isinstance(part.geometry, KeyPoint) for part in parts])
    return pairs.where(
        (np.array(part_images)[pairs.rows] == np.array(whole_images)[pairs.columns]) & not_keypoints[pairs.rows]
    )


def _may_contain_two(parts: Sequence[Region], wholes: Sequence[Region], near: Pairs) -> bool:
    """Whether any whole can contain two parts, by bounds and areas only; if none can, no shape is intersected."""
    bounds = np.array([part.geometry.bounds for part in parts])
    shapes = [part.geometry for part in parts]
    plain = np.array([isinstance(shape, Rectangle | Polygon | Ellipse) for shape in shapes])
    areas = shape_areas(
        [shape if is_plain else _NOTHING for shape, is_plain in zip(shapes, plain.tolist(), strict=True)]
    )
    bounds_areas = (bounds[:, 2:] - bounds[:, :2]).prod(axis=1)
    # A part's share inside a whole is at most that of its bounds; a part without area has no upper limit.
    max_ratio = np.divide(bounds_areas, areas, out=np.full(len(parts), np.inf), where=plain & (areas > 0))
    may_contain = near.columns[near.values * max_ratio[near.rows] >= MIN_INSIDE - _ROUNDING]
    return bool((np.bincount(may_contain, minlength=len(wholes)) >= 2).any())


def _inside(parts: Sequence[Region], wholes: Sequence[Region], near: Pairs) -> Pairs:
    """Share of each part's area inside each whole; by bounds if both are upright boxes, else by the exact shapes.

    Raises:
        TooLargeToJudge: The shapes have too many corners.
    """
    shares = near
    upright = [np.array([_upright(region) for region in regions]) for regions in (parts, wholes)]
    inexact = ~(upright[0][shares.rows] & upright[1][shares.columns])
    if not inexact.any():
        return shares
    canvas = [np.array([_canvas(region) for region in regions]) for regions in (parts, wholes)]
    rasterized = inexact & (canvas[0][shares.rows] > 0) & (canvas[0][shares.rows] == canvas[1][shares.columns])
    shares.values[rasterized] = _pixel_shares(parts, wholes, shares.where(rasterized))
    if not rasterized[inexact].all():
        shares.values[inexact & ~rasterized] = _shares(parts, wholes, shares.where(inexact & ~rasterized))
    return shares


def _canvas(region: Region) -> int:
    """Image size of a mask as one number; 0 for other shapes."""
    shape = region.geometry
    return shape.width << 32 | shape.height if isinstance(shape, Mask) else 0


def _pixel_shares(parts: Sequence[Region], wholes: Sequence[Region], pairs: Pairs) -> NDArray[np.float64]:
    shares = np.zeros(len(pairs.rows))
    starts = np.flatnonzero(np.diff(pairs.rows, prepend=-1)).tolist()
    for start, end in pairwise((*starts, len(shares))):
        whole_masks = [wholes[index].geometry.coco for index in pairs.columns[start:end].tolist()]
        part_mask = parts[pairs.rows[start]].geometry.coco
        # With iscrowd=1 pycocotools divides the intersection by the area of the first mask.
        shares[start:end] = coco.iou([part_mask], whole_masks, [1] * len(whole_masks))[0]
    return shares


def _shares(parts: Sequence[Region], wholes: Sequence[Region], pairs: Pairs) -> NDArray[np.float64]:
    outlines, enclosing = np.full(len(parts), None, dtype=object), np.full(len(wholes), None, dtype=object)
    for index in np.unique(pairs.rows).tolist():
        outlines[index] = parts[index].geometry.polygon()
    for index in np.unique(pairs.columns).tolist():
        shape = wholes[index].geometry
        # An ellipse around two objects leaves out their outer corners; its bounds are used instead.
        enclosing[index] = shapely.box(*shape.bounds) if isinstance(shape, Ellipse) else shape.polygon()
    part_shapes, whole_shapes = outlines[pairs.rows], enclosing[pairs.columns]
    if shapely.get_num_coordinates(part_shapes).sum() + shapely.get_num_coordinates(whole_shapes).sum() > _MOST_CORNERS:
        raise TooLargeToJudge("its outlines that overlap have too many corners")
    areas = shapely.area(part_shapes)
    shared = shapely.area(shapely.intersection(part_shapes, whole_shapes))
    shares: NDArray[np.float64] = np.divide(shared, areas, out=np.zeros_like(shared), where=areas > 0)
    return shares


def _overlap(a: Sequence[Region], b: Sequence[Region], *, least: float) -> Pairs:
    return iou_pairs([region.geometry for region in a], [region.geometry for region in b], min_iou=least)


def _have_duplicates(parts: Sequence[Region]) -> bool:
    pairs = _overlap(parts, parts, least=MAX_PART_OVERLAP)
    return bool(((pairs.rows < pairs.columns) & (pairs.values >= MAX_PART_OVERLAP)).any())


def _upright(region: Region) -> bool:
    return not getattr(region.geometry, "rotation", 1.0) and hasattr(region.geometry, "height")


def _image_of(region: Region) -> tuple[str, int]:
    return region.to_name, region.item_index


def _labels(regions: Sequence[Region], index: int) -> frozenset[str]:
    return frozenset(regions[index].labels)
