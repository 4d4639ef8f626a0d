"""Place labelled boxes on their image, and find labels that were drawn for other pixels.

Labels and images part in three ways that no detector survives: the labels are for another size of the image, for the
image before its EXIF rotation, or for another image altogether, so that boxes lie off it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Relative difference of two aspect ratios that rounding to whole pixels explains on common images.
ASPECT_TOLERANCE = 0.02

# Share of a box inside its image below which it lies off it.
MIN_INSIDE = 0.5

# Share of an image's boxes off the image above which all its labels are for other pixels.
MAX_OFF = 0.5


class LabelsMisplaced(ValueError):
    """The labels of an image are for other pixels; the message says which."""


@dataclass(frozen=True, eq=False)
class PlacedBoxes:
    """Labelled boxes in pixels of their image.

    Attributes:
        boxes: (m, 4) float32 x_min, y_min, x_max, y_max; boxes off the image included.
        kept: (m,) bool; False for boxes off the image.
        scaled_from: (width, height) that the labels were for; None where they were for the image's size.
    """

    boxes: Floats
    kept: npt.NDArray[np.bool_]
    scaled_from: tuple[int, int] | None = None


def scale_of_labels(stated: tuple[int, int], actual: tuple[int, int]) -> tuple[float, float]:
    """Factors (x, y) from the pixels that labels are for to those of the image.

    Args:
        stated: (width, height) that the labels are for; zeros where unknown: the image's.
        actual: (width, height) of the upright image.

    Raises:
        LabelsMisplaced: The two have different aspect ratios.
    """
    if not all(stated) or stated == actual:
        return 1.0, 1.0
    across, down = actual[0] / stated[0], actual[1] / stated[1]
    rounding = 1 / min(*stated, *actual)
    if abs(across / down - 1) <= ASPECT_TOLERANCE + rounding:
        return across, down
    sizes = f"the labels are for {stated[0]} x {stated[1]} pixels, the image has {actual[0]} x {actual[1]}"
    swapped = stated[::-1]
    if abs(actual[0] / swapped[0] / (actual[1] / swapped[1]) - 1) <= ASPECT_TOLERANCE + rounding:
        raise LabelsMisplaced(f"{sizes}: its EXIF rotation is not applied in the labels")
    raise LabelsMisplaced(sizes)


def place_boxes(boxes: Floats, stated: tuple[int, int], actual: tuple[int, int]) -> PlacedBoxes:
    """Place the boxes of an image.

    Args:
        boxes: (m, 4) float32 x_min, y_min, x_max, y_max in pixels of `stated`.
        stated: (width, height) that the labels are for; zeros where unknown: the image's.
        actual: (width, height) of the upright image.

    Raises:
        LabelsMisplaced: The labels are for other pixels.
    """
    across, down = scale_of_labels(stated, actual)
    placed = np.asarray(boxes * np.array([across, down, across, down]), np.float32)
    off = share_inside(placed, actual) < MIN_INSIDE
    if off.sum() > MAX_OFF * len(placed):
        raise LabelsMisplaced(
            f"{off.sum()} of its {len(placed)} boxes lie off the image of {actual[0]} x {actual[1]} pixels"
        )
    return PlacedBoxes(placed, ~off, stated if (across, down) != (1.0, 1.0) else None)


def share_inside(boxes: Floats, size: tuple[int, int]) -> Floats:
    """Share of the area of each box (m, 4) inside an image of (width, height) pixels; (m,) float32."""
    limits = np.array([*size, *size], np.float32)
    inside = np.clip(boxes, 0, limits)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.asarray(np.prod(inside[:, 2:] - inside[:, :2], axis=1) / np.maximum(areas, 1e-9), np.float32)
