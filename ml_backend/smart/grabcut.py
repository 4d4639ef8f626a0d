"""Owns `GrabCut`: an object cut out by colour, from a loose box or clicks, without any model file.

Rother, Kolmogorov, Blake 2004, "GrabCut" (https://doi.org/10.1145/1015706.1015720), with a prior of where in its box an
object lies. Colours are quantised (k-means in CIELAB, coarse, medium and fine); the odds that each is the object's are
counted under the prior, smoothed along edges (He et al. 2010, guided filter), and given to OpenCV's GrabCut as its
start. What is cut out is where both together say object: the cut follows edges, the odds forgive a cut that failed.
The constants were fitted to the objects that `bench/smart.py` measures, its score is no promise for others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from labelloop.labeling.geometry import Point, Rectangle
from ml_backend.smart.cutout import Cutout
from ml_backend.smart.prompts import Prompt

Floats = npt.NDArray[np.floating[Any]]
_NONE: Any = None  # OpenCV's stubs do not know where it takes None

SIDE = 112
"""Pixels of the crop's longer side at which it is cut: time grows with its square, accuracy hardly does."""

MARGIN = 0.1
"""Of the box's size, shown around it: background that is sure."""

MOST_ENLARGED = 3.0
COLOURS = (8, 16, 32)
ROUNDS = 2
"""Of GrabCut."""

STEEP, EDGE, ROUND = 1.0, 0.75, 3.0
"""The prior: log odds fall by STEEP a half box, through 0 at EDGE of it, on superellipses of exponent ROUND."""

COLOUR_WEIGHT = 4.5
SURE_BACKGROUND, SURE_OBJECT = -6.0, 1.5
"""Log odds beyond which GrabCut may not change its mind."""

CUT_WEIGHT = 0.4
"""Share of the cut in the answer; the rest is the odds'."""

LEAST_SHARE, MOST_SHARE = 0.3, 0.8
"""Of the box that an object fills: outside of it the threshold gives way."""

BEYOND = 0.4
"""How much larger the object is taken to be where its box ends at the photo's edge, in boxes."""

CLICK_REACH = 0.12
"""How far around a click the odds follow it, in crops."""

CLICK_FRAMES = (0.04, 0.11, 0.32, 0.64)
"""Sizes tried for an object that was only clicked, in longer sides of the photo."""

CLICK_SMALL = 0.3
"""How much a smaller object is likelier, as a power of its frame: else a large one, cut out of a wide frame, wins too
often, as more of its edge is a strong one."""

CLICK_SIDE = 56
"""As SIDE, for each of them: four tries take the time of one box."""


@dataclass(frozen=True, eq=False)
class _Crop:
    """The part of the photo around a box, at the size it is cut at.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        bounds: x_min, y_min, x_max, y_max in the photo.
        inside: (h, w) bool, in the box.
        prior: (h, w) log odds.
        clicks: (column, row, positive) of each click on it.
    """

    image: npt.NDArray[np.uint8]
    bounds: tuple[int, int, int, int]
    inside: npt.NDArray[np.bool_]
    prior: Floats
    clicks: tuple[tuple[int, int, bool], ...]


class GrabCut:
    """The segmenter `grabcut`. Keeps nothing of any photo, and gives the same answer to the same prompt."""

    name = "grabcut"

    def __init__(self) -> None:
        """Each request has a thread of its own; more of OpenCV's would only stand in each other's way."""
        cv2.setNumThreads(1)

    def look(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The photo itself: colours are modelled for each box anew, as what lies around it decides."""
        return image

    def segment(self, look: Any, prompt: Prompt) -> Cutout | None:
        """The object; None where the prompt lies outside the photo."""
        image: npt.NDArray[np.uint8] = look
        if prompt.box is not None:
            crop = _crop(image, prompt.box, prompt, side=SIDE)
            return _cut(crop) if crop is not None else None
        found = [
            (_outlined(crop, cutout) * share**-CLICK_SMALL, cutout)
            for share in CLICK_FRAMES
            if (crop := _crop(image, _frame(image, prompt.positives, share), prompt, side=CLICK_SIDE)) is not None
            and (cutout := _cut(crop)) is not None
        ]
        return max(found, key=lambda one: one[0])[1] if found else None


def _frame(image: npt.NDArray[np.uint8], points: tuple[Point, ...], share: float) -> Rectangle:
    """A square box about the clicks, larger where they lie apart."""
    half = share * max(image.shape[:2]) / 2
    xs, ys = zip(*points, strict=True)
    return Rectangle(min(xs) - half, min(ys) - half, max(xs) - min(xs) + 2 * half, max(ys) - min(ys) + 2 * half)


def _crop(image: npt.NDArray[np.uint8], box: Rectangle, prompt: Prompt, *, side: int) -> _Crop | None:
    height, width = image.shape[:2]
    x_min, y_min, x_max, y_max = box.bounds
    spare_x, spare_y = max(4.0, MARGIN * (x_max - x_min)), max(4.0, MARGIN * (y_max - y_min))
    left, top = max(0, int(x_min - spare_x)), max(0, int(y_min - spare_y))
    right, bottom = min(width, int(np.ceil(x_max + spare_x))), min(height, int(np.ceil(y_max + spare_y)))
    if min(x_max, width) - max(x_min, 0) < 1 or min(y_max, height) - max(y_min, 0) < 1:
        return None
    scale = min(side / max(right - left, bottom - top), MOST_ENLARGED)
    columns, rows = max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small: Any = cv2.resize(image[top:bottom, left:right], (columns, rows), interpolation=how)
    u, v = _in_box(box, (left, top, right, bottom), columns, rows, size=(width, height))
    inside = (np.abs(u[0]) < 1) & (np.abs(v[0]) < 1)
    distance = (np.abs(u[1]) ** ROUND + np.abs(v[1]) ** ROUND) ** (1 / ROUND)
    prior = np.where(inside, np.clip(STEEP * (EDGE - distance), -6, 4), -8).astype(np.float32)
    clicks = tuple(
        (int((x - left) * columns / (right - left)), int((y - top) * rows / (bottom - top)), positive)
        for points, positive in ((prompt.positives, True), (prompt.negatives, False))
        for x, y in points
        if left <= x < right and top <= y < bottom
    )
    return _Crop(_smooth(small), (left, top, right, bottom), inside, _told(prior, inside, clicks), clicks)


def _in_box(
    box: Rectangle, bounds: tuple[int, int, int, int], columns: int, rows: int, *, size: tuple[int, int]
) -> tuple[list[Floats], list[Floats]]:
    """Each pixel's place across and down the box, -1 to 1 from side to side: in the box drawn, and in the likely one.

    A box that ends at the photo's edge cuts the object off: the likely one goes on beyond it.
    """
    left, top, right, bottom = bounds
    ys, xs = np.mgrid[:rows, :columns].astype(np.float32) + 0.5
    xs, ys = left + xs * (right - left) / columns, top + ys * (bottom - top) / rows
    turn = np.deg2rad(box.rotation)
    across = (xs - box.x) * np.cos(turn) + (ys - box.y) * np.sin(turn)
    down = (ys - box.y) * np.cos(turn) - (xs - box.x) * np.sin(turn)
    edges = [0.0, box.width, 0.0, box.height]
    x_min, y_min, x_max, y_max = box.bounds
    if not box.rotation:
        edges[0] -= BEYOND * box.width * (x_min <= 1)
        edges[1] += BEYOND * box.width * (x_max >= size[0] - 1)
        edges[2] -= BEYOND * box.height * (y_min <= 1)
        edges[3] += BEYOND * box.height * (y_max >= size[1] - 1)
    u = [across / (box.width / 2) - 1, (across - (edges[0] + edges[1]) / 2) / ((edges[1] - edges[0]) / 2)]
    v = [down / (box.height / 2) - 1, (down - (edges[2] + edges[3]) / 2) / ((edges[3] - edges[2]) / 2)]
    return u, v


def _smooth(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    smooth: Any = cv2.bilateralFilter(image, 5, 10, 3)  # noise of the sensor and of JPEG
    return smooth  # type: ignore[no-any-return]


def _told(prior: Floats, inside: npt.NDArray[np.bool_], clicks: tuple[tuple[int, int, bool], ...]) -> Floats:
    """The prior with what the clicks say around them."""
    if not clicks:
        return prior
    rows, columns = np.mgrid[: prior.shape[0], : prior.shape[1]]
    reach = CLICK_REACH * max(prior.shape)
    told = prior.copy()
    for column, row, positive in clicks:
        near = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * reach**2)).astype(np.float32)
        told += (4 if positive else -6) * near
    return np.where(inside, told, prior)


def _cut(crop: _Crop) -> Cutout | None:
    odds = _odds(crop)
    chance = 1 / (1 + np.exp(-odds))
    share = CUT_WEIGHT * _graph_cut(crop, odds) + (1 - CUT_WEIGHT) * chance
    share = cv2.medianBlur((share * 255).astype(np.uint8), 3).astype(np.float32) / 255
    level: Floats = share - _threshold(share[crop.inside])
    level[~crop.inside] = -0.5
    for column, row, positive in crop.clicks:
        cv2.circle(level, (column, row), 2, 0.5 if positive else -0.5, -1)
    level = _whole(level, crop.clicks)
    found = level > 0
    if not found.any():
        return None
    return Cutout(level.astype(np.float32), crop.bounds, float(np.clip(share[found].mean(), 0, 1)))


def _odds(crop: _Crop) -> Floats:
    """Log odds that each pixel is the object's: by place and by colour."""
    lab = cv2.cvtColor(crop.image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    values = (lab.reshape(-1, 3) * np.array([0.7, 1.3, 1.3], np.float32)).astype(np.float32)
    chance = 1 / (1 + np.exp(-crop.prior.ravel()))
    cv2.setRNGSeed(1)  # of this thread alone; the same prompt has the same answer
    said = np.zeros(len(values))
    for most in COLOURS:
        count = max(2, min(most, len(values) // 8))
        stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 6, 1.0)
        labels = cv2.kmeans(values, count, _NONE, stop, 1, cv2.KMEANS_PP_CENTERS)[1].ravel()
        object_ = np.bincount(labels, chance, count) + 0.5
        rest = np.bincount(labels, None, count) + 1.0 - object_
        said += (np.log(object_ / object_.sum()) - np.log(rest / rest.sum()))[labels]
    colour = np.clip(said / len(COLOURS), -5, 5).reshape(crop.prior.shape)
    return _guided(lab / 100, (crop.prior + COLOUR_WEIGHT * colour).astype(np.float32))


def _guided(guide: Floats, values: Floats, *, radius: int = 1, epsilon: float = 0.01) -> Floats:
    """He, Sun, Tang 2010 (https://doi.org/10.1007/978-3-642-15549-9_1), each channel a guide, their mean."""

    def mean(array: Any) -> Any:
        return cv2.boxFilter(array, -1, (2 * radius + 1, 2 * radius + 1))

    total = np.zeros_like(values)
    mean_values = mean(values)
    for channel in np.moveaxis(guide, 2, 0):
        mean_guide = mean(channel)
        slope = (mean(channel * values) - mean_guide * mean_values) / (
            mean(channel * channel) - mean_guide * mean_guide + epsilon
        )
        total += mean(slope) * channel + mean(mean_values - slope * mean_guide)
    smooth: Floats = total / guide.shape[2]
    return smooth


def _graph_cut(crop: _Crop, odds: Floats) -> Floats:
    """1 where GrabCut sees the object, else 0."""
    start = np.where(odds > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    start[odds < SURE_BACKGROUND] = cv2.GC_BGD
    start[odds > SURE_OBJECT] = cv2.GC_FGD
    start[~crop.inside] = cv2.GC_BGD
    for column, row, positive in crop.clicks:
        cv2.circle(start, (column, row), 2, cv2.GC_FGD if positive else cv2.GC_BGD, -1)
    is_object = (start & 1).astype(bool)
    if is_object.any() and not is_object.all():
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(np.ascontiguousarray(crop.image[:, :, ::-1]), start, _NONE, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    return (start & 1).astype(np.float32)


def _threshold(share: Floats) -> float:
    """One half, but for objects that would fill almost nothing of their box, or almost all of it."""
    filled = float((share > 0.5).mean())
    if LEAST_SHARE <= filled <= MOST_SHARE:
        return 0.5
    wanted = LEAST_SHARE if filled < LEAST_SHARE else MOST_SHARE
    limit = float(np.quantile(share, 1 - wanted))
    return min(0.5, limit) if filled < LEAST_SHARE else max(0.5, limit)


def _whole(level: Floats, clicks: tuple[tuple[int, int, bool], ...]) -> Floats:
    """Without specks, and without holes but those that were clicked."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats((level > 0).astype(np.uint8), connectivity=8)
    if count > 1:
        clicked = {int(parts[row, column]) for column, row, positive in clicks if positive} - {0}
        areas = stats[:, cv2.CC_STAT_AREA]
        if clicked:  # what was clicked is meant, and what hangs together with it
            kept = sorted(clicked)
        else:
            kept = [part for part in range(1, count) if areas[part] >= 0.15 * areas[1:].max()]
        level = np.where((level > 0) & ~np.isin(parts, kept), np.float32(-0.5), level)
    holes, spaces, _, _ = cv2.connectedComponentsWithStats((level <= 0).astype(np.uint8), connectivity=4)
    around = set(np.concatenate([spaces[0], spaces[-1], spaces[:, 0], spaces[:, -1]]).tolist())
    around |= {int(spaces[row, column]) for column, row, positive in clicks if not positive}
    closed = [space for space in range(1, holes) if space not in around]
    return np.where(np.isin(spaces, closed) & (level <= 0), np.float32(0.05), level)


def _outlined(crop: _Crop, cutout: Cutout) -> float:
    """How much it looks like one whole object: colours differ across its edge, and its frame does not cut it off."""
    found: Any = (cutout.level > 0).astype(np.uint8)
    lab = cv2.cvtColor(crop.image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    inner, outer = found - cv2.erode(found, np.ones((3, 3))), cv2.dilate(found, np.ones((5, 5))) - found
    if not inner.any() or not outer.any():
        return 0.0
    local = [cv2.blur(lab * one[..., None], (7, 7)) / (cv2.blur(one.astype(np.float32), (7, 7))[..., None] + 1e-3)
             for one in (found, 1 - found)]  # fmt: skip
    contrast = np.linalg.norm(local[0] - local[1], axis=2)[inner > 0].mean()
    rim = cv2.dilate((~crop.inside).astype(np.uint8), np.ones((3, 3))) & found
    return float(contrast * (1 - min(1.0, rim.sum() / inner.sum())))
