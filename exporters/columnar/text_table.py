"""Render millions of rows of text with numpy: literals, numbers and texts in fixed-width cells, then strip padding.

The rows of a block are one structured byte array, filled a column at a time. Numbers are integers, or integers in a
decimal unit, rendered four digits at a time from lookup tables. They come out exactly as JSON encoders write them
(`1240.5`, `0.0`).
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.polygons import Rings

Ints = NDArray[np.int64]
# A literal, or a column with one entry a row: four digits as uint32, or texts. Zero bytes pad a short entry.
Cell = bytes | NDArray[np.uint32] | NDArray[np.bytes_]

# Marks the end of a part: no JSON or XML text contains it.
END = b"\x01"
# Hundred-millionths below which JSON writes a number with an exponent, and `decimals` does not.
SMALLEST = 1_000
_GROUP = 10_000
_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
_SPACED = str.maketrans({",": " ", "[": None, "]": None})


def to_units(values: NDArray[np.float64], digits: int) -> Ints:
    """Convert non-negative numbers to integers in units of ``10**-digits``, halves rounded up."""
    scaled: Ints = np.floor(values * 10.0**digits + 0.5).astype(np.int64)
    return scaled


def integers(values: Ints) -> list[Cell]:
    """Return the cells of a column of non-negative integers: (rows,)."""
    return list(_integer_cells(values, int(values.max(initial=0))))


def decimals(values: Ints, digits: int) -> list[list[Cell]]:
    """Return the cells of columns of decimal numbers, without trailing zeros except the first digit after the point.

    Args:
        values: (columns, rows), non-negative, in units of ``10**-digits``.
        digits: digits after the point: 4 or 8.

    Returns:
        The cells of each column.
    """
    full, _, trimmed = _digit_tables()
    before, rest = _divmod(np.ascontiguousarray(values), 10**digits)
    after: list[NDArray[np.uint32]]
    if digits == 4:
        after = [trimmed.take(rest)]
    else:
        high, low = _divmod(rest, _GROUP)
        after = [np.where(low > 0, full[high], trimmed[high]), np.where(low > 0, trimmed[low], 0)]
    points: list[bytes] = [b"."] * len(values)
    integer_part = _integer_cells(before, int(before.max(initial=0)))
    return [list(column) for column in zip(*integer_part, points, *after, strict=True)]


def json_texts(values: Sequence[str]) -> NDArray[np.bytes_]:
    """Encode texts as JSON strings: one column, as wide as the longest."""
    letters = np.frombuffer(_encode_lines(values), np.uint8)
    breaks = letters == ord("\n")
    stops = np.concatenate(([-1], np.flatnonzero(breaks)))
    lengths = stops[1:] - stops[:-1] - 1
    width = int(lengths.max(initial=1))
    column = np.zeros((len(values), width), np.uint8)
    column[np.arange(width) < lengths[:, None]] = letters[~breaks]
    return column.view(f"S{width}").ravel()


def render_rows(cells: Sequence[Cell], rows: int) -> bytes:
    """Return the text of all rows, concatenated.

    Args:
        cells: the cells of a row, in order.
        rows: how many rows there are.
    """
    names = [str(number) for number in range(len(cells))]
    formats = [f"S{len(cell)}" if isinstance(cell, bytes) else cell.dtype for cell in cells]
    row_type = np.dtype({"names": names, "formats": formats})
    template = np.zeros(1, row_type)
    for name, cell in zip(names, cells, strict=True):
        if isinstance(cell, bytes):
            template[name] = cell
    table = np.repeat(template, rows)
    for name, cell in zip(names, cells, strict=True):
        if not isinstance(cell, bytes):
            table[name] = cell
    return table.tobytes().translate(None, b"\0")


def row_ends(first: Sequence[int] | Ints, between: bytes, last: bytes = b"") -> NDArray[np.bytes_]:
    """Return the cell that ends each row, for rows grouped into parts: see `split_parts`.

    Args:
        first: the first row of each part, then the number of rows: (parts + 1,).
        between: separates two rows of a part.
        last: follows the last row of a part, before `END`.
    """
    bounds = np.asarray(first)
    cells = np.full(bounds[-1], between, f"S{len(last) + len(END)}")
    cells[bounds[1:][np.diff(bounds) > 0] - 1] = last + END
    return cells


def split_parts(text: bytes, first: Sequence[int] | Ints) -> list[bytes]:
    """Split rendered rows that end in `row_ends` into the text of each part; a part without rows is empty."""
    texts = split_marks(text, END)
    return [next(texts) if length else b"" for length in np.diff(first).tolist()]


def split_marks(text: bytes, mark: bytes) -> Iterator[bytes]:
    """Split as ``bytes.split`` does; faster where marks of one byte are rare."""
    start = 0
    while (stop := text.find(mark, start)) >= 0:
        yield text[start:stop]
        start = stop + 1
    yield text[start:]


def round_half_up(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """Round to ``digits`` digits, halves up: ``int(number * 10**digits + 0.5) / 10**digits``."""
    scale = 10.0**digits
    result: NDArray[np.float64] = np.floor(values * scale + 0.5) / scale
    return result


def json_numbers(values: NDArray[np.float64]) -> list[str]:
    """Encode each number of an array as JSON, in C order."""
    return _encode(values.ravel().tolist())[1:-1].decode().split(",") if values.size else []


def json_rows(values: NDArray[np.float64]) -> list[str]:
    """Encode the numbers of each row, (rows, columns), as JSON, with spaces between them."""
    if not len(values):
        return []
    return _encode_lines(values.tolist()).decode().translate(_SPACED).split("\n")[:-1]


def json_rings(rings: Rings, points: NDArray[np.float64]) -> list[str]:
    """Encode each ring as a JSON list ``[x,y,x,y,...]``.

    Args:
        rings: which points belong to which ring.
        points: (points, 2), the coordinates to write, in place of ``rings.points``.
    """
    if not len(rings.rows):
        return []
    flat = points.ravel().tolist()
    first = (2 * rings.first).tolist()
    lists = [flat[start:stop] for start, stop in pairwise(first)]
    return _encode_lines(lists).decode().split("\n")[:-1]


def _integer_cells(values: Ints, largest: int) -> list[NDArray[np.uint32]]:
    full, unpadded, _ = _digit_tables()
    if largest < _GROUP:
        return [unpadded.take(values)]
    higher, last = _divmod(values, _GROUP)
    cells = _integer_cells(higher, largest // _GROUP)
    if higher.all():
        return [*cells, full.take(last)]
    long = higher > 0
    return [*(np.where(long, cell, 0) for cell in cells), np.where(long, full.take(last), unpadded.take(last))]


def _divmod(values: Ints, divisor: int) -> tuple[Ints, Ints]:
    """Same as ``np.divmod``, several times as fast."""
    quotient = values // divisor
    return quotient, values - quotient * divisor


@cache
def _digit_tables() -> tuple[NDArray[np.uint32], ...]:
    """Return the texts of 0 to 9,999 as 4 bytes each, in three tables of (10000,).

    With all four digits; without leading zeros; without trailing zeros. The last two keep the one digit of 0.
    """
    numbers = np.arange(_GROUP)
    digits = np.stack([numbers // 1000, numbers // 100 % 10, numbers // 10 % 10, numbers % 10], axis=1)
    full = (digits + ord("0")).astype(np.uint8)
    unpadded = np.where(np.cumsum(digits, axis=1) == 0, 0, full).astype(np.uint8)
    trimmed = np.where(np.cumsum(digits[:, ::-1], axis=1)[:, ::-1] == 0, 0, full).astype(np.uint8)
    unpadded[0, 0] = trimmed[0, 0] = ord("0")
    return tuple(np.ascontiguousarray(table).view(np.uint32).ravel() for table in (full, unpadded, trimmed))
