"""Rings: what is simple for certain is so for shapely too, and hardly any that is simple is not known for it."""

from collections.abc import Callable

import numpy as np
import pytest
import shapely

from exporters.columnar.polygons import Rings, simple_areas, star_shaped_about_centroid
from exporters.structures.arrays import offsets

RNG = np.random.default_rng(0)
_BEGIN = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _the_same_rings_in_any_order() -> None:
    RNG.bit_generator.state = _BEGIN


def scattered(length: int) -> np.ndarray:
    return RNG.uniform(0, 200, (length, 2))


def on_a_grid(length: int) -> np.ndarray:  # sides that touch, lie on each other, have no length
    return RNG.integers(0, 5, (length, 2)) * 20.0


def around(length: int) -> np.ndarray:
    turns = np.sort(RNG.uniform(0, 2 * np.pi, length))
    return RNG.uniform(20, 100, (length, 1)) * np.stack((np.cos(turns), np.sin(turns)), axis=1) + 100


def with_a_stray(length: int) -> np.ndarray:
    return around(length) + RNG.uniform(-300, 300, 2) * (RNG.random((length, 1)) < 0.1)


def along_a_line(length: int) -> np.ndarray:  # a band that no point in its middle sees whole
    x = np.linspace(0, 300, length // 2 + 2)
    upper = np.stack((x, 40 * np.sin(x / 20)), axis=1)
    return np.concatenate((upper, upper[::-1] + np.array([0, 15])))


def far_out(length: int) -> np.ndarray:
    return around(length) + 99_000


@pytest.mark.parametrize("kind", [scattered, on_a_grid, around, with_a_stray, along_a_line, far_out])
@pytest.mark.parametrize("test", [star_shaped_about_centroid, simple_areas])
def test_what_is_simple_for_certain_is_simple(test: Callable, kind: Callable[[int], np.ndarray]) -> None:
    shortest = 3 if test is not simple_areas else RNG.choice([3, 25])
    rings = [kind(length) for length in RNG.integers(shortest, 30, 200)]
    first, points = offsets(np.array([len(ring) for ring in rings])), np.concatenate(rings)
    outlines = [shapely.Polygon(ring) for ring in rings]
    valid = shapely.is_valid(outlines)
    if test is simple_areas:
        certain, areas = simple_areas(Rings(np.arange(len(rings)), first, points))
        closed = np.array([(ring[0] == ring[-1]).all() for ring in rings])
        assert (certain == valid)[~closed].all()
        assert areas[certain] == pytest.approx(shapely.area(outlines)[certain])
    else:
        certain = star_shaped_about_centroid(points, first)
    assert not (certain & ~valid).any()
