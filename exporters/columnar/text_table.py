"""Rows of text by the million: literals, numbers and texts in cells of fixed width, whose empty bytes go at the end.

A block's rows are one array of bytes, filled a column at a time. Numbers are whole ones, or whole numbers of a decimal
unit, taken four digits at a time from tables; they come out as JSON has them (`1240.5`, `0.0`), to the byte.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.polygons import Rings

Ints = NDArray[np.int64]
Cell = bytes | NDArray[np.uint32] | NDArray[np.bytes_]
"""A literal, or a column of a row each: four digits, or texts. What is shorter than its cell ends in zero bytes."""

END = b"\x01"
"""The end of a part: no text of JSON or XML has it."""
SMALLEST = 1_000
"""Hundred-millionths below which JSON writes a number with an exponent, and `decimal` does not."""
_GROUP = 10_000
_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


def units(values: NDArray[np.float64], digits: int) -> Ints:
    """Numbers from 0 in whole units of so many digits after the point: halves go up."""
    found: Ints = np.floor(values * 10.0**digits + 0.5).astype(np.int64)
    return found


def whole(values: Ints) -> list[Cell]:
    """Whole numbers from 0."""
    return list(_whole(values, int(values.max(initial=0))))


def decimals(values: Ints, digits: int) -> list[list[Cell]]:
    """Numbers from 0 in units of 4 or 8 digits after the point, without zeros at the end but for the first.

    Args:
        values: (columns, rows).
        digits: after the point.

    Returns:
        The cells of each column.
    """
    full, _, ends = _digits()
    before, rest = _divided(np.ascontiguousarray(values), 10**digits)
    after: list[NDArray[np.uint32]]
    if digits == 4:
        after = [ends.take(rest)]
    else:
        high, low = _divided(rest, _GROUP)
        after = [np.where(low > 0, full[high], ends[high]), np.where(low > 0, ends[low], 0)]
    points: list[bytes] = [b"."] * len(values)
    return [list(column) for column in zip(*_whole(before, int(before.max(initial=0))), points, *after, strict=True)]


def texts(values: Sequence[str]) -> NDArray[np.bytes_]:
    """Texts as JSON: as wide a column as the longest."""
    letters = np.frombuffer(_encode_lines(values), np.uint8)
    breaks = letters == ord("\n")
    stops = np.concatenate(([-1], np.flatnonzero(breaks)))
    lengths = stops[1:] - stops[:-1] - 1
    width = int(lengths.max(initial=1))
    column = np.zeros((len(values), width), np.uint8)
    column[np.arange(width) < lengths[:, None]] = letters[~breaks]
    return column.view(f"S{width}").ravel()


def sheet(cells: Sequence[Cell], rows: int) -> bytes:
    """The text of all rows, one after the other."""
    names = [str(number) for number in range(len(cells))]
    forms = [f"S{len(cell)}" if isinstance(cell, bytes) else cell.dtype for cell in cells]
    form = np.dtype({"names": names, "formats": forms})
    empty = np.zeros(1, form)
    for name, cell in zip(names, cells, strict=True):
        if isinstance(cell, bytes):
            empty[name] = cell
    filled = np.repeat(empty, rows)
    for name, cell in zip(names, cells, strict=True):
        if not isinstance(cell, bytes):
            filled[name] = cell
    return filled.tobytes().translate(None, b"\0")


def ends(first: Sequence[int] | Ints, between: bytes, last: bytes = b"") -> NDArray[np.bytes_]:
    """What stands after each row where rows are parts: ``first[i]`` is the first row of part ``i``, and so on.

    Args:
        first: with the number of rows at its end.
        between: what stands between the rows of a part.
        last: what stands after the last row of a part, before ``END``.
    """
    places = np.asarray(first)
    found = np.full(places[-1], between, f"S{len(last) + len(END)}")
    found[places[1:][np.diff(places) > 0] - 1] = last + END
    return found


def parts(text: bytes, first: Sequence[int] | Ints) -> list[bytes]:
    """The text of each part of a sheet whose rows end in `ends`; empty where it has no rows."""
    found = split(text, END)
    return [next(found) if length else b"" for length in np.diff(first).tolist()]


def split(text: bytes, mark: bytes) -> Iterator[bytes]:
    """What stands between marks, as ``bytes.split`` has it, whose look at each byte costs more where they are few."""
    start = 0
    while (stop := text.find(mark, start)) >= 0:
        yield text[start:stop]
        start = stop + 1
    yield text[start:]


def rounded(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """Numbers rounded to so many digits: halves go up, as in ``int(number * 10**digits + 0.5) / 10**digits``."""
    scale = 10.0**digits
    found: NDArray[np.float64] = np.floor(values * scale + 0.5) / scale
    return found


def numbers(values: NDArray[np.float64]) -> list[str]:
    """Each number of an array, row after row, as JSON."""
    return _encode(values.ravel().tolist())[1:-1].decode().split(",") if values.size else []


def ring_texts(rings: Rings, points: NDArray[np.float64]) -> list[str]:
    """Each ring as JSON: ``[x,y,x,y,...]``; ``points`` are those of the rings, made what the format wants."""
    if not len(rings.rows):
        return []
    flat = points.ravel().tolist()
    first = (2 * rings.first).tolist()
    lists = [flat[start:stop] for start, stop in pairwise(first)]
    return _encode_lines(lists).decode().split("\n")[:-1]


def _whole(values: Ints, largest: int) -> list[NDArray[np.uint32]]:
    full, first, _ = _digits()
    if largest < _GROUP:
        return [first.take(values)]
    higher, last = _divided(values, _GROUP)
    cells = _whole(higher, largest // _GROUP)
    if higher.all():
        return [*cells, full.take(last)]
    long = higher > 0
    return [*(np.where(long, cell, 0) for cell in cells), np.where(long, full.take(last), first.take(last))]


def _divided(values: Ints, by: int) -> tuple[Ints, Ints]:
    """As ``np.divmod``, which takes several times as long."""
    found = values // by
    return found, values - found * by


@cache
def _digits() -> tuple[NDArray[np.uint32], ...]:
    """The texts of 0 to 9,999, four bytes each.

    With all four digits; without zeros in front, but for 0 itself; without zeros at the end, but for 0 itself.
    """
    numbers = np.arange(_GROUP)
    digits = np.stack([numbers // 1000, numbers // 100 % 10, numbers // 10 % 10, numbers % 10], axis=1)
    full = (digits + ord("0")).astype(np.uint8)
    first = np.where(np.cumsum(digits, axis=1) == 0, 0, full).astype(np.uint8)
    ends = np.where(np.cumsum(digits[:, ::-1], axis=1)[:, ::-1] == 0, 0, full).astype(np.uint8)
    first[0, 0] = ends[0, 0] = ord("0")
    return tuple(np.ascontiguousarray(table).view(np.uint32).ravel() for table in (full, first, ends))
