"""Paint the objects of an image into one map, in which a pixel has one object, as semantic and panoptic masks need.

Where objects overlap, the smaller one is on top, so that all of them are visible; of equal ones the later.
"""

import io
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.model.clipping import visible_outline
from exporters.model.records import Item, Object
from labelloop.labeling.geometry.raster import MAX_PIXELS, rasterise_crop
from labelloop.labeling.geometry.shapes import Mask

OVERLAP = "where objects overlap, the smaller one is on top"
COVERED = "covered by smaller objects: a pixel has one object"
NO_PIXEL = "smaller than a pixel"
TOO_LARGE = f"a mask image holds {MAX_PIXELS >> 20} million pixels"
LEFT_OUT_LARGE = "image of more pixels than a mask image holds, left out"


class LabelMap(msgspec.Struct, frozen=True):
    """The pixels of an image.

    Attributes:
        pixels: (height, width), the index of the object of each pixel plus one; 0 for none.
        objects: The objects, by index.
        refused: The objects without a pixel, with the reason.
    """

    pixels: NDArray[np.integer[Any]]
    objects: Sequence[Object]
    refused: Sequence[tuple[Object, str]] = ()


def paint(item: Item, objects: Sequence[Object]) -> LabelMap:
    """Paint objects with an area on the image of an item, whose size is known and at most ``MAX_PIXELS``."""
    width, height = item.image.canvas
    pixels = np.zeros((height, width), np.uint16 if len(objects) < 1 << 16 else np.int32)
    empty: set[int] = set()
    for index in sorted(range(len(objects)), key=lambda index: (-objects[index].area, index)):
        own, x, y = _object_pixels(objects[index], width, height)
        if own.any():
            pixels[y : y + own.shape[0], x : x + own.shape[1]][own] = index + 1
        else:
            empty.add(index)
    visible = np.bincount(pixels.ravel(), minlength=len(objects) + 1) > 0
    refused = [
        (obj, NO_PIXEL if index in empty else COVERED) for index, obj in enumerate(objects) if not visible[index + 1]
    ]
    return LabelMap(pixels, objects, refused)


def _object_pixels(obj: Object, width: int, height: int) -> tuple[NDArray[np.bool_], int, int]:
    """Return the pixels of an object with an area, and the column and row of the first one."""
    shape = obj.geometry
    if not isinstance(shape, Mask):
        return rasterise_crop(visible_outline(obj), width, height)
    x_min, y_min, x_max, y_max = map(int, shape.bounds)
    return shape.array()[y_min:y_max, x_min:x_max], x_min, y_min


def encode_png(pixels: NDArray[Any], palette: bytes = b"") -> bytes:
    """Encode pixels as a PNG: 8 bits with a palette, 16 bits grey (uint16), or RGB (height, width, 3)."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(palette)  # turns 8 bits grey into a palette of the same numbers
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def decode_png(data: bytes) -> NDArray[Any]:
    """Decode a PNG that `encode_png` made: (height, width), or (height, width, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image)
