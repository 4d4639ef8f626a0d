"""Describe regions in words: label, shape and position on the image."""

from labelloop.labeling.region import Region

_POSITIONS = (
    ("at the upper left", "at the top", "at the upper right"),
    ("at the left", "in the middle", "at the right"),
    ("at the lower left", "at the bottom", "at the lower right"),
)


def position_text(bounds: tuple[float, float, float, float] | None, item_index: int = 0) -> str:
    """Position on the image as a cell of a 3 x 3 grid: "at the upper left", "in the middle", "at the bottom".

    Args:
        bounds: (x_min, y_min, x_max, y_max) in [0, 1] of the image; None: no position.
        item_index: Index of the image in the task, from 0.
    """
    if bounds is None:
        return ""
    left, top, right, bottom = bounds
    position = _POSITIONS[_third((top + bottom) / 2)][_third((left + right) / 2)]
    return f"{position} of image {item_index + 1}" if item_index else position


def bounds_of(region: Region) -> tuple[float, float, float, float]:
    """Bounds of a region (x_min, y_min, x_max, y_max) in [0, 1] of its image."""
    left, top, right, bottom = region.geometry.bounds
    return left / region.width, top / region.height, right / region.width, bottom / region.height


def region_name(labels: tuple[str, ...], shape: str) -> str:
    """A region with its article: "a Car", "an Animal", "a box without a label"."""
    name = " + ".join(labels) or f"{shape} without a label"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _third(coordinate: float) -> int:
    return min(max(int(coordinate * 3), 0), 2)
