"""Find all pairs of 64-bit hashes within a Hamming distance, without comparing every pair.

Multi-index hashing (Norouzi, Punjani and Fleet 2012, https://arxiv.org/abs/1307.2982): of two hashes that differ in at
most 14 bits, one of five substrings differs in at most two bits. So each hash is looked up in five tables, under its
own substring and those that differ from it in one or two bits.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

MAX_DISTANCE = 14
# (first bit, number of bits) of the substrings.
_SUBSTRINGS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))
_SUBSTRING_DISTANCE = MAX_DISTANCE // len(_SUBSTRINGS)
# Most hashes with one substring that are all compared with each other. Where more images share one, as frames of a
# fixed camera do, each is compared with this many that follow in the order of hashes.
MAX_BUCKET = 256
# Pairs looked at in one step; bounds memory.
_STEP = 1 << 21

Integers = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Pairs = tuple[NDArray[np.uint32], NDArray[np.uint32]]


def close_pairs(hashes: Hashes, queries: Hashes | None = None, *, max_distance: int = MAX_DISTANCE) -> Iterator[Pairs]:
    """Yield the pairs of positions (first, second) whose hashes are close, each pair at least once.

    Args:
        hashes: (n,) uint64.
        queries: (n,) uint64, compared with ``hashes`` instead of themselves, such as hashes of mirrored images.
        max_distance: Largest number of differing bits, at most `MAX_DISTANCE`.

    Yields:
        Positions in ``hashes``, the first below the second.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(f"max_distance is {max_distance}, not 0 to {MAX_DISTANCE}")
    asked = hashes if queries is None else queries
    for shift, bits in _SUBSTRINGS:
        table = _Table(hashes, shift, bits)
        for change in _changes(bits, min(_SUBSTRING_DISTANCE, max_distance)):
            for first, second in table.pairs(asked, change):
                close = np.bitwise_count(asked[first] ^ hashes[second]) <= max_distance
                if close.any():
                    yield first[close].astype(np.uint32), second[close].astype(np.uint32)


def _changes(bits: int, distance: int) -> Sequence[int]:
    """All numbers of ``bits`` bits with at most ``distance`` bits set."""
    chosen = (bits_set for size in range(distance + 1) for bits_set in combinations(range(bits), size))
    return [sum(1 << bit for bit in bits_set) for bits_set in chosen]


class _Table:
    """The positions of hashes by one substring, within a substring in the order of the other bits.

    Hashes are rotated so that the substring has the highest bits; one sorted array is the table.
    """

    def __init__(self, hashes: Hashes, shift: int, bits: int) -> None:
        self._turn, self._rest = np.uint64((shift + bits) % 64), np.uint64(64 - bits)
        rotated = self._rotate(hashes)
        self._order = np.argsort(rotated)
        self._sorted = rotated[self._order]
        self._starts = np.searchsorted(self._sorted >> self._rest, np.arange((1 << bits) + 1, dtype=np.uint64))

    def pairs(self, asked: Hashes, change: int) -> Iterator[tuple[Integers, Integers]]:
        """Yield the pairs (row of ``asked``, position with the changed substring) with the row below the position."""
        wanted = self._rotate(asked) ^ (np.uint64(change) << self._rest)
        keys = (wanted >> self._rest).astype(np.int64)
        first = self._starts[keys]
        sizes = self._starts[keys + 1] - first
        if (large := np.flatnonzero(sizes > MAX_BUCKET)).size:
            places = np.searchsorted(self._sorted, wanted[large]) - first[large]
            first[large] += np.clip(places - MAX_BUCKET // 2, 0, sizes[large] - MAX_BUCKET)
            sizes[large] = MAX_BUCKET
        ends = np.cumsum(sizes)
        begin = 0
        while begin < len(sizes):
            before = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + _STEP, side="right")))
            part = sizes[begin:end]
            rows = np.repeat(np.arange(begin, end), part)
            offsets = np.arange(len(rows)) - np.repeat(ends[begin:end] - part - before, part)
            others = self._order[first[rows] + offsets]
            ordered = rows < others
            yield rows[ordered], others[ordered]
            begin = end

    def _rotate(self, hashes: Hashes) -> Hashes:
        if not self._turn:
            return hashes
        return np.asarray((hashes >> self._turn) | (hashes << (np.uint64(64) - self._turn)), np.uint64)
