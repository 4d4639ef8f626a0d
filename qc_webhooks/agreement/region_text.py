"""Regions in words: what an annotator calls a thing, and where on the image it is."""

from labelloop.labeling.studio.regions import Region

_PLACES = (
    ("at the upper left", "at the top", "at the upper right"),
    ("at the left", "in the middle", "at the right"),
    ("at the lower left", "at the bottom", "at the lower right"),
)


def place_of(bounds: tuple[float, float, float, float] | None, item_index: int = 0) -> str:
    """Where on the image, in words of a three by three grid: "at the upper left", "in the middle", "at the bottom".

    Args:
        bounds: (x_min, y_min, x_max, y_max), each 0 to 1 of the image; None: nowhere.
        item_index: Which image of the task, from 0.
    """
    if bounds is None:
        return ""
    left, top, right, bottom = bounds
    where = _PLACES[_third((top + bottom) / 2)][_third((left + right) / 2)]
    return f"{where} of image {item_index + 1}" if item_index else where


def bounds_of(region: Region) -> tuple[float, float, float, float]:
    """Bounds of a region, 0 to 1 of its image."""
    left, top, right, bottom = region.geometry.bounds
    return left / region.width, top / region.height, right / region.width, bottom / region.height


def thing(labels: tuple[str, ...], shape: str) -> str:
    """A region with its article: "a Car", "an Animal", "a box without a label"."""
    name = " + ".join(labels) or f"{shape} without a label"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _third(position: float) -> int:
    return min(max(int(position * 3), 0), 2)
