"""Numbers and texts as JSON, many at a time: what a format writes by the million costs one call a block."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.polygons import Rings

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


def rounded(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """Numbers rounded to so many digits: halves go up, as in ``int(number * 10**digits + 0.5) / 10**digits``."""
    scale = 10.0**digits
    found: NDArray[np.float64] = np.floor(values * scale + 0.5) / scale
    return found


def numbers(values: NDArray[np.float64]) -> list[str]:
    """Each number of an array, row after row, as JSON."""
    return _encode(values.ravel().tolist())[1:-1].decode().split(",") if values.size else []


def texts(values: Sequence[str]) -> list[str]:
    """Each text as JSON."""
    return _encode_lines(values).decode().splitlines()[: len(values)] if values else []


def ring_texts(rings: Rings, points: NDArray[np.float64]) -> list[str]:
    """Each ring as JSON: ``[x,y,x,y,...]``; ``points`` are those of the rings, made what the format wants."""
    if not len(rings.rows):
        return []
    flat = points.ravel().tolist()
    first = (2 * rings.first).tolist()
    lists = [flat[start:stop] for start, stop in pairwise(first)]
    return _encode_lines(lists).decode().split("\n")[:-1]
