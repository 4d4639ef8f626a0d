"""Owns `Outline`: an object found in a loose box, or about clicks, without any model file of the user's.

A small network (`ml_backend/models/outline.onnx`, its card in `docs/reference/outline-model.md`) sees the box's view,
what its colours say (`clues`) and the box's sides, and gives log odds by pixel. Where to cut them is chosen so that the
overlap that they promise is largest. Clicks are told to the colours before, and hold afterwards whatever was found.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from labelloop.labeling.geometry.shapes import Point, Rectangle
from ml_backend.inference.session import open_session
from ml_backend.smart.crop import MIRRORED, View
from ml_backend.smart.crop_mask import InstanceMask
from ml_backend.smart.evidence_maps import SIDE, clues, inside, lab_of, prior
from ml_backend.smart.prompts import Prompt

Floats = npt.NDArray[np.float32]

SEEN = 96
"""Pixels of a view as the network sees it."""

SUREST = 5.0
"""Log odds that the network is believed at most, so that a click can say otherwise."""

EDGES, REACH, SOFT = 160, 5, 0.002
"""Pixels of a view at which edges are followed, how far around each, and the contrast below which there is none."""

CLICK_REACH = 0.12
"""How far around a click the odds follow it, in views."""

HIT, MISSED = 4.0, -6.0
"""Log odds that a click adds where it lies."""

BETWEEN = 5.0
"""The same between a click on the object and one beside it: halfway nothing, near either as much as the network."""

CLICK_FRAMES = (0.04, 0.11, 0.32, 0.64)
"""Sizes tried for an object that was only clicked, in longer sides of the photo."""

CLICK_SMALL = 0.3
"""How much a smaller object is likelier, as a power of its frame: else a large one, cut out of a wide frame, wins too
often, as more of its edge is a strong one."""

LEAST_PART = 0.15
"""Of the largest part: what is smaller is a speck."""


def embedded_outline() -> Path:
    """The network that comes with labelloop."""
    return Path(str(files("ml_backend").joinpath("models", "outline.onnx")))


class Outline:
    """The segmenter `outline`. Keeps nothing of any photo, and gives the same answer to the same prompt."""

    name = "outline"

    def __init__(self, path: Path | None = None) -> None:
        """Opens the network.

        Args:
            path: Another one of the same inputs; None: the one that comes with labelloop.

        Raises:
            ModelError: It is missing or broken.
        """
        # Each request has a thread of its own; more of OpenCV's would only stand in each other's way.
        cv2.setNumThreads(1)
        self._session = open_session(path or embedded_outline(), threads=1)

    def look(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The photo itself: a box is looked at with what lies around it, anew for each."""
        return image

    def segment(self, look: Any, prompt: Prompt) -> InstanceMask | None:
        """The object; None where the prompt lies outside the photo, or nothing is found."""
        image: npt.NDArray[np.uint8] = look
        height, width = image.shape[:2]
        boxes = [prompt.box] if prompt.box is not None else _frames(image, prompt.positives)
        views = [view for view in (View(box, width, height) for box in boxes) if _on_photo(view)]
        if not views:
            return None
        shown = [view.show(image, SEEN) for view in views]
        odds = self._odds(views, shown, prompt)
        best = 0
        if len(views) > 1:  # the views are the larger, the wider their frame
            likely = [
                _outlined(crop, _cut(view, one, prompt)[0]) * view.box.width**-CLICK_SMALL
                for view, crop, one in zip(views, shown, odds, strict=True)
            ]
            best = int(np.argmax(likely))
        view = views[best]
        level, score = _cut(view, _sharpened(odds[best], view.show(image, EDGES)), prompt)
        return InstanceMask(view.place(level), view.bounds, score) if (level > 0).any() else None

    def _odds(self, views: Sequence[View], shown: Sequence[npt.NDArray[np.uint8]], prompt: Prompt) -> Floats:
        """(n, SIDE, SIDE) log odds that a pixel is the object's."""
        within, before = inside(), prior()
        told = [np.where(within, before + _told(view, prompt), before) for view in views]
        seen = np.stack([crop.transpose(2, 0, 1) for crop in shown]).astype(np.float32)
        said = np.stack([clues(crop, one) for crop, one in zip(shown, told, strict=True)])
        sides = np.stack([view.sides for view in views])
        feeds = {
            "view": np.concatenate([seen, seen[..., ::-1]]),
            "clues": np.concatenate([said, said[..., ::-1]]),
            "sides": np.concatenate([sides, sides[:, MIRRORED]]),
        }
        odds, mirrored = np.split(self._session.run(["odds"], feeds)[0], 2)
        mean = (odds + mirrored[..., ::-1]) / 2  # two opinions for the time of one more run of the network
        known: Floats = np.clip(mean, -SUREST, SUREST) + np.stack([_told(view, prompt) for view in views])
        return known


def _frames(image: npt.NDArray[np.uint8], points: tuple[Point, ...]) -> list[Rectangle]:
    """Square boxes about the clicks, larger where they lie apart."""
    xs, ys = zip(*points, strict=True)
    halves = [share * max(image.shape[:2]) / 2 for share in CLICK_FRAMES]
    return [
        Rectangle(min(xs) - half, min(ys) - half, max(xs) - min(xs) + 2 * half, max(ys) - min(ys) + 2 * half)
        for half in halves
    ]


def _on_photo(view: View) -> bool:
    left, top, right, bottom = view.box.bounds
    return min(right, view.width) - max(left, 0) >= 1 and min(bottom, view.height) - max(top, 0) >= 1


def _cut(view: View, odds: Floats, prompt: Prompt) -> tuple[Floats, float]:
    """(level, score): above 0 lies the object."""
    chance = (1 / (1 + np.exp(-odds))).astype(np.float32)
    level = chance - _best_cut(chance)
    clicks = _clicks(view, prompt, len(odds))
    for column, row, positive in clicks:
        cv2.circle(level, (column, row), len(odds) // SIDE, 0.5 if positive else -0.5, -1)
    level = _whole(level, clicks).astype(np.float32)
    found = level > 0
    return level, float(chance[found].mean()) if found.any() else 0.0


def _sharpened(odds: Floats, view: npt.NDArray[np.uint8]) -> Floats:
    """The odds at the resolution of `view`, their edges where its colours change.

    A guided filter (He, Sun, Tang 2010, https://doi.org/10.1007/978-3-642-15549-9_1), each channel a guide, their mean.
    """

    def mean(array: Any) -> Any:
        return cv2.boxFilter(array, -1, (2 * REACH + 1, 2 * REACH + 1))

    large: Any = cv2.resize(odds, (len(view), len(view)), interpolation=cv2.INTER_LINEAR)
    mean_odds, total = mean(large), np.zeros_like(large)
    for guide in np.moveaxis(cv2.cvtColor(view.astype(np.float32) / 255, cv2.COLOR_RGB2Lab) / 100, 2, 0):
        mean_guide = mean(guide)
        slope = (mean(guide * large) - mean_guide * mean_odds) / (mean(guide * guide) - mean_guide**2 + SOFT)
        total += mean(slope) * guide + mean(mean_odds - slope * mean_guide)
    sharp: Floats = total / 3
    return sharp


def _clicks(view: View, prompt: Prompt, side: int) -> list[tuple[int, int, bool]]:
    """(column, row, positive) of each click that lies in the view of so many pixels."""
    found = []
    for points, positive in ((prompt.positives, True), (prompt.negatives, False)):
        for across, down in (view.find(*point) for point in points):
            if 0 <= across < 1 and 0 <= down < 1:
                found.append((int(across * side), int(down * side), positive))
    return found


def _told(view: View, prompt: Prompt) -> Floats:
    """(SIDE, SIDE) log odds that the clicks add: around each, and towards whose side a pixel lies on between them."""
    told = np.zeros((SIDE, SIDE), np.float32)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    nearest = {True: np.full((SIDE, SIDE), np.inf), False: np.full((SIDE, SIDE), np.inf)}
    for column, row, positive in _clicks(view, prompt, SIDE):
        away = np.hypot(rows - row, columns - column)
        nearest[positive] = np.minimum(nearest[positive], away)
        told += (HIT if positive else MISSED) * np.exp(-(away**2) / (2 * (CLICK_REACH * SIDE) ** 2)).astype(np.float32)
    hit, missed = nearest[True], nearest[False]
    if np.isfinite(hit).all() and np.isfinite(missed).all():
        told += (BETWEEN * (missed - hit) / (missed + hit + 1)).astype(np.float32)
    return told


def _best_cut(chance: Floats) -> float:
    """The level above which lies the object, so that the overlap (IoU) to be expected is the largest.

    Of the pixels above a level, the sum of their chances is shared; the union is they and the chances below it.
    """
    falling = np.sort(chance.ravel())[::-1].astype(np.float64)
    shared = np.cumsum(falling)
    expected = shared / (np.arange(1, falling.size + 1) + shared[-1] - shared)
    best = int(expected.argmax())
    below = falling[best + 1] if best + 1 < falling.size else 0.0
    return float((falling[best] + below) / 2)


def _whole(level: Floats, clicks: Sequence[tuple[int, int, bool]]) -> Floats:
    """Without specks, and without holes but those that were clicked."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats((level > 0).astype(np.uint8), connectivity=8)
    if count > 1:
        clicked = {int(parts[row, column]) for column, row, positive in clicks if positive} - {0}
        areas = stats[:, cv2.CC_STAT_AREA]
        if clicked:  # what was clicked is meant, and what hangs together with it
            kept = sorted(clicked)
        else:
            kept = [part for part in range(1, count) if areas[part] >= LEAST_PART * areas[1:].max()]
        level = np.where((level > 0) & ~np.isin(parts, kept), np.float32(-0.5), level)
    holes, spaces, _, _ = cv2.connectedComponentsWithStats((level <= 0).astype(np.uint8), connectivity=4)
    around = set(np.concatenate([spaces[0], spaces[-1], spaces[:, 0], spaces[:, -1]]).tolist())
    around |= {int(spaces[row, column]) for column, row, positive in clicks if not positive}
    closed = [space for space in range(1, holes) if space not in around]
    return np.where(np.isin(spaces, closed) & (level <= 0), np.float32(0.05), level)


def _outlined(view: npt.NDArray[np.uint8], level: Floats) -> float:
    """How much it looks like one whole object: colours differ across its edge, and its frame does not cut it off."""
    found: Any = (level > 0).astype(np.uint8)
    lab = lab_of(view)
    inner, outer = found - cv2.erode(found, np.ones((3, 3))), cv2.dilate(found, np.ones((5, 5))) - found
    if not inner.any() or not outer.any():
        return 0.0
    local = [cv2.blur(lab * one[..., None], (7, 7)) / (cv2.blur(one.astype(np.float32), (7, 7))[..., None] + 1e-3)
             for one in (found, 1 - found)]  # fmt: skip
    contrast = np.linalg.norm(local[0] - local[1], axis=2)[inner > 0].mean()
    rim = cv2.dilate((~inside()).astype(np.uint8), np.ones((3, 3))) & found
    return float(contrast * (1 - min(1.0, rim.sum() / inner.sum())))
