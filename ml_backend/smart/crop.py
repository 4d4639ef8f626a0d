"""Owns `View`: the square in which an object's box is looked at, and the way back onto the photo."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from labelloop.labeling.geometry.shapes import Rectangle

SHOWN = 1.4
"""How much more than the box is shown, in boxes: what lies around it is background, and says what that looks like."""

BESIDE = 114
"""Grey of what lies beyond the photo's edge."""

FINEST = 160
"""Pixels of the longer side at which a level comes back: it is smooth, and enlarged where the photo is larger."""

MIRRORED = [0, 1, 2, 5, 4, 3, 6]
"""Places of `View.sides` in the mirror: left and right change."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """A box, upright or turned, stretched to a square of any number of pixels.

    Attributes:
        box: In pixels of the photo.
        width: Of the photo, pixels; height: the same.
    """

    box: Rectangle
    width: int
    height: int

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """The part of the photo that it shows: x_min, y_min, x_max, y_max, whole pixels; empty where it shows none."""
        corners = self._frame() @ np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]], float)
        (left, top), (right, bottom) = np.floor(corners[:2].min(1)), np.ceil(corners[:2].max(1))
        return max(0, int(left)), max(0, int(top)), min(self.width, int(right)), min(self.height, int(bottom))

    @property
    def sides(self) -> Floats:
        """What a square cannot show: log2 of width, height and their ratio, and which sides lie on the photo's edge."""
        left, top, right, bottom = self.box.bounds
        wide, high = max(self.box.width, 1.0), max(self.box.height, 1.0)
        edges = (left <= 1, top <= 1, right >= self.width - 1, bottom >= self.height - 1)
        return np.array([np.log2(wide), np.log2(high), np.log2(wide / high), *edges], np.float32)

    def show(self, image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
        """The view: (side, side, 3).

        Args:
            image: (height, width, 3) RGB, the photo.
            side: Pixels.
        """
        left, top, right, bottom = self.bounds
        part = image[top:bottom, left:right]
        frame = self._frame()
        steps = np.linalg.norm(frame[:2, :2], axis=0) / side  # pixels of the photo for one of the view
        if self.box.rotation:
            steps = np.full(2, steps.min())
        shrink = np.maximum(1.0, steps)
        small = (max(1, round((right - left) / shrink[0])), max(1, round((bottom - top) / shrink[1])))
        if (steps > 1.5).any():  # else the linear look-up would skip pixels
            part = cv2.resize(part, small, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        scale = np.array([part.shape[1] / (right - left), part.shape[0] / (bottom - top), 1.0])
        matrix = np.diag(scale) @ _moved(-left, -top) @ frame @ np.diag([1 / side, 1 / side, 1.0])
        shown: Any = cv2.warpAffine(
            part,
            _between_pixels(matrix)[:2],
            (side, side),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(BESIDE, BESIDE, BESIDE),
        )
        return shown  # type: ignore[no-any-return]

    def place(self, level: Floats) -> Floats:
        """A level of the view as it lies on the photo: covers `bounds`, -1 where the view shows nothing."""
        left, top, right, bottom = self.bounds
        shrink = min(1.0, FINEST / max(right - left, bottom - top))
        columns, rows = max(1, round((right - left) * shrink)), max(1, round((bottom - top) * shrink))
        onto = _moved(left, top) @ np.diag([(right - left) / columns, (bottom - top) / rows, 1.0])
        matrix = np.diag([level.shape[1], level.shape[0], 1.0]) @ np.linalg.inv(self._frame()) @ onto
        placed: Any = cv2.warpAffine(
            level,
            _between_pixels(matrix)[:2],
            (columns, rows),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=-1,
        )
        return placed  # type: ignore[no-any-return]

    def find(self, x: float, y: float) -> tuple[float, float]:
        """A point of the photo, in views: 0 to 1 from left to right and from top to bottom."""
        across, down, _ = np.linalg.inv(self._frame()) @ [x, y, 1.0]
        return float(across), float(down)

    def _frame(self) -> npt.NDArray[np.float64]:
        """(3, 3): a point in views -> in pixels of the photo."""
        turn = np.deg2rad(self.box.rotation)
        across, down = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        middle = np.array([self.box.x, self.box.y]) + across * self.box.width / 2 + down * self.box.height / 2
        across, down = across * max(self.box.width, 2.0) * SHOWN, down * max(self.box.height, 2.0) * SHOWN
        corner = middle - (across + down) / 2
        return np.array([[across[0], down[0], corner[0]], [across[1], down[1], corner[1]], [0, 0, 1]])


def _moved(x: float, y: float) -> npt.NDArray[np.float64]:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def _between_pixels(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The same for OpenCV, to which a pixel's middle is a whole number, not a half."""
    return _moved(-0.5, -0.5) @ matrix @ _moved(0.5, 0.5)
