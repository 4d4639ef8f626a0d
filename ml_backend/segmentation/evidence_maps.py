"""Evidence maps: per-pixel colour logits and geodesic distances around a box, as inputs of the outline network.

Colours are quantised by k-means in CIELAB, coarse to fine. The logit of each colour is counted under a location prior,
then again under the result, as in GrabCut (Rother, Kolmogorov, Blake 2004, https://doi.org/10.1145/1015706.1015720).
Distances are geodesic: the minimum change of colour along a path (Bai, Sapiro 2007,
https://doi.org/10.1109/ICCV.2007.4408931).
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.detection.logits import expit
from ml_backend.segmentation.crop import CONTEXT

Floats = npt.NDArray[np.float32]
_NONE: Any = None  # OpenCV's stubs do not know where it takes None

# Side in pixels at which colours are counted.
SIDE = 48

# Cluster counts of the first pass and of the second.
FIRST_CLUSTERS, SECOND_CLUSTERS = (8, 16, 32), (12, 24)

EVIDENCE_MAPS = len(FIRST_CLUSTERS) + len(SECOND_CLUSTERS) + 4
# The location prior: logits fall by 1 per half box, through 0 at EDGE of it, on superellipses of exponent ROUNDNESS.
EDGE, ROUNDNESS = 0.75, 3.0

# Path cost of a step between pixels of equal colour.
STEP_COST = 0.3

# Relaxations between two checks for convergence.
CHECK_EVERY = 8

_ALL, _FIRST, _LAST = slice(None), slice(None, -1), slice(1, None)
# Index pairs of all 8-connected neighbours.
_ONE = ((_ALL, _FIRST), (_FIRST, _ALL), (_FIRST, _FIRST), (_FIRST, _LAST))
_OTHER = ((_ALL, _LAST), (_LAST, _ALL), (_LAST, _LAST), (_LAST, _FIRST))

# Prior logit outside the box.
OUTSIDE = -8.0
# Weight of the first pass's mean logits in the second pass.
COLOUR_WEIGHT = 4.5
# Radius, in half boxes, of the centre region from which the second distance is measured.
CENTRE_RADIUS = 0.3


def box_coordinates() -> tuple[Floats, Floats]:
    """Pixel coordinates x and y, each (SIDE, SIDE) float32: -1..1 in the box, beyond it in the rest of the crop."""
    line = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1).astype(np.float32) * np.float32(CONTEXT)
    across, down = np.meshgrid(line, line)
    return across, down


def location_prior() -> Floats:
    """Prior logits (SIDE, SIDE) float32 that a pixel belongs to the object, by its location."""
    across, down = box_coordinates()
    distance = (np.abs(across) ** ROUNDNESS + np.abs(down) ** ROUNDNESS) ** (1 / ROUNDNESS)
    return np.where(inside_box(), EDGE - distance, OUTSIDE).astype(np.float32)


def inside_box() -> npt.NDArray[np.bool_]:
    """Mask (SIDE, SIDE) of the pixels in the box."""
    across, down = box_coordinates()
    return (np.abs(across) < 1) & (np.abs(down) < 1)


def evidence_maps(view: npt.NDArray[np.uint8], prior_logits: Floats) -> Floats:
    """Compute evidence maps (EVIDENCE_MAPS, SIDE, SIDE) float32: colour logits of both passes, then four distances.

    Args:
        view: (side, side, 3) uint8 RGB: a rendered `BoxCrop`.
        prior_logits: (SIDE, SIDE) float32 by location and clicks.
    """
    lab = cielab(view)
    colours = np.ascontiguousarray(lab.reshape(-1, 3) * np.array([0.7, 1.3, 1.3], np.float32))
    in_box = inside_box()
    cv2.setRNGSeed(1)  # of this thread alone; the same prompt has the same answer
    first = [_colour_logits(colours, expit(prior_logits.astype(np.float64)).ravel(), count) for count in FIRST_CLUSTERS]
    combined = prior_logits + COLOUR_WEIGHT * np.clip(np.mean(first, axis=0), -5, 5)
    second = [
        _colour_logits(colours, np.where(in_box, expit(combined.astype(np.float64)), 0).ravel(), count)
        for count in SECOND_CLUSTERS
    ]
    across, down = box_coordinates()
    border_distance, centre_distance = _distances(lab, np.stack([~in_box, across**2 + down**2 < CENTRE_RADIUS**2]))
    distances = [
        border_distance / 10,
        border_distance / (border_distance.max() + 1e-6),
        centre_distance / 10,
        (border_distance - centre_distance) / (border_distance + centre_distance + 1e-3),
    ]
    return np.clip(np.stack([*first, *second, *distances]), -8, 8).astype(np.float32)


def cielab(view: npt.NDArray[np.uint8]) -> Floats:
    """Convert to CIELAB (SIDE, SIDE, 3) float32, after a bilateral filter against sensor and JPEG noise."""
    smooth: Any = cv2.bilateralFilter(view, 5, 10, 3).astype(np.float32) / 255
    lab: Any = cv2.resize(cv2.cvtColor(smooth, cv2.COLOR_RGB2Lab), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return lab  # type: ignore[no-any-return]


def _colour_logits(colours: Floats, probability: npt.NDArray[np.float64], clusters: int) -> npt.NDArray[np.float64]:
    """Cluster colours (SIDE * SIDE, 3) and return each pixel's cluster logit, (SIDE, SIDE) float64."""
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 6, 1.0)
    labels = cv2.kmeans(colours, clusters, _NONE, criteria, 1, cv2.KMEANS_PP_CENTERS)[1].ravel()
    foreground = np.bincount(labels, probability, clusters) + 0.5
    background = np.bincount(labels, None, clusters) + 1.0 - foreground
    logits: npt.NDArray[np.float64] = np.log(foreground / foreground.sum()) - np.log(background / background.sum())
    return np.asarray(logits[labels].reshape(SIDE, SIDE))


def _distances(lab: Floats, seeds: npt.NDArray[np.bool_]) -> Floats:
    """Geodesic distances (n, SIDE, SIDE) float32 from each of n seed masks.

    Bellman-Ford relaxation of all pixels at once; as fast as a priority queue at this size.
    """
    pairs = list(zip(_ONE, _OTHER, strict=True))
    steps = [np.linalg.norm(lab[first] - lab[second], axis=-1) + np.float32(STEP_COST) for first, second in pairs]
    distances = np.where(seeds, np.float32(0), np.float32(np.inf))
    for _ in range(SIDE * SIDE // CHECK_EVERY):
        before = distances.copy()
        for _ in range(CHECK_EVERY):
            for (first, second), step in zip(pairs, steps, strict=True):
                at_first, at_second = distances[:, *first], distances[:, *second]
                np.minimum(at_second, at_first + step, out=at_second)
                np.minimum(at_first, at_second + step, out=at_first)
        if np.array_equal(before, distances):
            break
    return distances
