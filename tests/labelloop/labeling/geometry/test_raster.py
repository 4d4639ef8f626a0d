"""Outlines become pixels by COCO's own rule, on images of any size."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from labelloop.labeling.errors import MaskTooLarge
from labelloop.labeling.geometry.raster import rasterise
from labelloop.labeling.geometry.shapes import Mask

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 30))
PLACES = st.integers(-40, 200).map(lambda quarter: quarter / 4)
RINGS = st.lists(st.tuples(PLACES, PLACES), min_size=3, max_size=8)


def by_cocos_tools(outline, width, height):
    """Each ring filled on a canvas of the whole image."""

    def filled(ring):
        flat = shapely.get_coordinates(ring)[:-1].ravel().tolist()
        return coco.decode(coco.frPyObjects([flat], height, width)[0]) != 0

    pixels = np.zeros((height, width), bool)
    for part in shapely.get_parts(shapely.intersection(outline, shapely.box(0, 0, width, height))):
        if part.geom_type == "Polygon" and not part.is_empty:
            pixels |= filled(part.exterior) & ~np.any([filled(hole) for hole in part.interiors] or [False], axis=0)
    return pixels


@given(SIZES, RINGS)
def test_cropped_rasterisation_equals_that_of_the_whole_image(size, ring):
    width, height = size
    outline = shapely.make_valid(shapely.Polygon(ring))
    expected = by_cocos_tools(outline, width, height)
    np.testing.assert_array_equal(rasterise(outline, width, height), expected)
    mask = Mask.from_outline(outline, width, height)
    assert mask == Mask.from_array(expected)  # to the byte
    assert (mask.width, mask.height) == size


def test_outline_on_an_image_larger_than_memory():
    outline = shapely.box(50_000, 40_000, 50_300, 40_200).difference(shapely.box(50_100, 40_050, 50_150, 40_100))
    mask = Mask.from_outline(outline, 65_000, 66_000)
    assert (mask.area, mask.bounds) == (300 * 200 - 50 * 50, (50_000, 40_000, 50_300, 40_200))


@pytest.mark.parametrize(
    ("outline", "size"),
    [(shapely.box(0, 0, 9, 9), (90_000, 90_000)), (shapely.box(0, 0, 60_000, 60_000), (60_000, 60_000))],
    ids=["more pixels than 32 bits count", "more pixels than are held at once"],
)
def test_mask_that_cannot_be_held_says_so(outline, size):
    with pytest.raises(MaskTooLarge, match=f"{size[0]} x {size[1]} pixels"):
        Mask.from_outline(outline, *size)
    with pytest.raises(MaskTooLarge):
        rasterise(outline, *size)
