"""Owns what the colours around a box say, pixel by pixel: whose they are, and how far it is to the background.

Colours are quantised (k-means in CIELAB, coarse to fine); the odds that each is the object's are counted under a prior
of where in its box an object lies, then once more under what came of it, as GrabCut does (Rother, Kolmogorov, Blake
2004, https://doi.org/10.1145/1015706.1015720). Distances are geodesic: the change of colour along the way that changes
least (Bai, Sapiro 2007, https://doi.org/10.1109/ICCV.2007.4408931).
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.smart.crop import SHOWN

Floats = npt.NDArray[np.float32]
_NONE: Any = None  # OpenCV's stubs do not know where it takes None

SIDE = 48
"""Pixels of a view at which colours are counted."""

COLOURS, AGAIN = (8, 16, 32), (12, 24)
"""Of the first count and of the second."""

CLUES = len(COLOURS) + len(AGAIN) + 4
EDGE, ROUND = 0.75, 3.0
"""The prior: log odds fall by 1 a half box, through 0 at EDGE of it, on superellipses of exponent ROUND."""

WAY = 0.3
"""Of a step from pixel to pixel where the colour stays: a little for the way itself."""

LOOK_EVERY = 8
"""Relaxations between two looks whether anything changes still."""

_ALL, _FIRST, _LAST = slice(None), slice(None, -1), slice(1, None)
_ONE = ((_ALL, _FIRST), (_FIRST, _ALL), (_FIRST, _FIRST), (_FIRST, _LAST))
_OTHER = ((_ALL, _LAST), (_LAST, _ALL), (_LAST, _LAST), (_LAST, _FIRST))
"""Every pair of pixels that touch, at a side or at a corner."""

OUTSIDE = -8.0
COLOUR_WEIGHT = 4.5
HEART = 0.3
"""Radius, in half boxes, of the middle from which the second distance is measured."""


def places() -> tuple[Floats, Floats]:
    """Each pixel's place across and down the box, -1 to 1 from side to side; the view reaches beyond."""
    line = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1).astype(np.float32) * np.float32(SHOWN)
    across, down = np.meshgrid(line, line)
    return across, down


def prior() -> Floats:
    """(SIDE, SIDE) log odds that a pixel is the object's, by its place alone."""
    across, down = places()
    distance = (np.abs(across) ** ROUND + np.abs(down) ** ROUND) ** (1 / ROUND)
    return np.where(inside(), EDGE - distance, OUTSIDE).astype(np.float32)


def inside() -> npt.NDArray[np.bool_]:
    """Which pixels lie in the box."""
    across, down = places()
    return (np.abs(across) < 1) & (np.abs(down) < 1)


def clues(view: npt.NDArray[np.uint8], before: Floats) -> Floats:
    """(CLUES, SIDE, SIDE): log odds by colour, the first count's and the second's, then the four distances.

    Args:
        view: (side, side, 3) RGB: a box's `View`.
        before: (SIDE, SIDE) log odds by place, and by what else is known.
    """
    lab = lab_of(view)
    colours = np.ascontiguousarray(lab.reshape(-1, 3) * np.array([0.7, 1.3, 1.3], np.float32))
    within = inside()
    cv2.setRNGSeed(1)  # of this thread alone; the same prompt has the same answer
    first = [_counted(colours, _chance(before).ravel(), count) for count in COLOURS]
    said = before + COLOUR_WEIGHT * np.clip(np.mean(first, axis=0), -5, 5)
    second = [_counted(colours, np.where(within, _chance(said), 0).ravel(), count) for count in AGAIN]
    across, down = places()
    rim, heart = _distances(lab, np.stack([~within, across**2 + down**2 < HEART**2]))
    ways = [rim / 10, rim / (rim.max() + 1e-6), heart / 10, (rim - heart) / (rim + heart + 1e-3)]
    return np.clip(np.stack([*first, *second, *ways]), -8, 8).astype(np.float32)


def lab_of(view: npt.NDArray[np.uint8]) -> Floats:
    """(SIDE, SIDE, 3) CIELAB, without the noise of sensors and of JPEG."""
    smooth: Any = cv2.bilateralFilter(view, 5, 10, 3).astype(np.float32) / 255
    lab: Any = cv2.resize(cv2.cvtColor(smooth, cv2.COLOR_RGB2Lab), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return lab  # type: ignore[no-any-return]


def _chance(odds: Floats) -> npt.NDArray[np.float64]:
    chance: npt.NDArray[np.float64] = 1 / (1 + np.exp(-odds.astype(np.float64)))
    return chance


def _counted(colours: Floats, chance: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.float64]:
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 6, 1.0)
    labels = cv2.kmeans(colours, most, _NONE, stop, 1, cv2.KMEANS_PP_CENTERS)[1].ravel()
    object_ = np.bincount(labels, chance, most) + 0.5
    rest = np.bincount(labels, None, most) + 1.0 - object_
    odds: npt.NDArray[np.float64] = np.log(object_ / object_.sum()) - np.log(rest / rest.sum())
    return np.asarray(odds[labels].reshape(SIDE, SIDE))


def _distances(lab: Floats, seeds: npt.NDArray[np.bool_]) -> Floats:
    """(n, SIDE, SIDE): from each of n sets of pixels, the change of colour along the way that changes least.

    Bellman and Ford's relaxation, all pixels at once: on so small a square as fast as a queue, and without SciPy, which
    would take 23 MB of every worker.
    """
    pairs = list(zip(_ONE, _OTHER, strict=True))
    steps = [np.linalg.norm(lab[one] - lab[other], axis=-1) + np.float32(WAY) for one, other in pairs]
    found = np.where(seeds, np.float32(0), np.float32(np.inf))
    for _ in range(SIDE * SIDE // LOOK_EVERY):
        before = found.copy()
        for _ in range(LOOK_EVERY):
            for (one, other), step in zip(pairs, steps, strict=True):
                here, there = found[:, *one], found[:, *other]
                np.minimum(there, here + step, out=there)
                np.minimum(here, there + step, out=here)
        if np.array_equal(before, found):
            break
    return found
