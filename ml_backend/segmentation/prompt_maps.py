"""Prompt maps: the outline network's input channels for a prompt, in addition to the pixels."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from labelloop.labeling.geometry.shapes import Point
from ml_backend.segmentation.crop import CONTEXT, BoxCrop

Floats = npt.NDArray[np.float32]

# Side in pixels of prompt maps, logits and features.
GRID = 56

# Order of the maps.
BOX, POSITIVE, NEGATIVE, INSIDE_IMAGE, HAS_BOX, ASPECT = range(6)
PROMPT_MAPS = 6

# Standard deviation of a click's blob, in pixels of the map.
CLICK_SIGMA = 2.0

_CENTRES = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID


def prompt_maps(
    crop: BoxCrop, positives: Sequence[Point] = (), negatives: Sequence[Point] = (), *, has_box: bool
) -> Floats:
    """Render a prompt in a crop: (PROMPT_MAPS, GRID, GRID) float32.

    Args:
        crop: The crop.
        positives: (x, y) of clicks on the object, pixels of the image.
        negatives: (x, y) of clicks on the background.
        has_box: Whether the crop's box was drawn; otherwise it is a guess around the clicks.
    """
    maps = np.zeros((PROMPT_MAPS, GRID, GRID), np.float32)
    if has_box:
        coverage = _box_coverage()
        maps[BOX] = coverage[:, None] * coverage[None]
        maps[HAS_BOX] = 1
        aspect = max(crop.box.width, 1.0) / max(crop.box.height, 1.0)
        maps[ASPECT] = np.clip(np.log2(aspect) / 3, -1, 1)
    for index, points in ((POSITIVE, positives), (NEGATIVE, negatives)):
        for across, down in (crop.to_crop(*point) for point in points):
            if -0.1 < across < 1.1 and -0.1 < down < 1.1:
                column = np.exp(-(((_CENTRES - across) * GRID) ** 2) / (2 * CLICK_SIGMA**2))
                row = np.exp(-(((_CENTRES - down) * GRID) ** 2) / (2 * CLICK_SIGMA**2))
                np.maximum(maps[index], row[:, None] * column[None], out=maps[index])
    maps[INSIDE_IMAGE] = _inside_image(crop)
    return maps


def _box_coverage() -> Floats:
    """Share of each column that lies in the crop's box: (GRID,)."""
    margin = GRID * (1 - 1 / CONTEXT) / 2
    edges = np.arange(GRID + 1, dtype=np.float32)
    covered: Floats = np.clip(np.minimum(edges[1:], GRID - margin) - np.maximum(edges[:-1], margin), 0, 1)
    return covered


def _inside_image(crop: BoxCrop) -> npt.NDArray[np.bool_]:
    """Pixels of the map whose centre lies in the image: (GRID, GRID)."""
    matrix = crop.to_image_matrix()
    x = matrix[0, 0] * _CENTRES[None] + matrix[0, 1] * _CENTRES[:, None] + matrix[0, 2]
    y = matrix[1, 0] * _CENTRES[None] + matrix[1, 1] * _CENTRES[:, None] + matrix[1, 2]
    inside: npt.NDArray[np.bool_] = (x >= 0) & (x < crop.width) & (y >= 0) & (y < crop.height)
    return inside
