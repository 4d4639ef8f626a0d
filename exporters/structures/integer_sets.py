"""Compact sets of integers: `IntervalSet` for consecutive numbers, `SpillingSet` for 64-bit hashes on the disk."""

import os
import sys
import tempfile
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Keys held in memory before they are merged into the file on the disk: a power of two.
MEMORY_KEYS = 1 << 15
# Keys merged at a time.
MERGE_KEYS = 1 << 16
# Keys read from the disk at a time; the first of each page is held in memory.
_PAGE_KEYS = 64


class IntervalSet:
    """A set of integers from 0, stored as intervals of 16 bytes each: cheap for task ids, which are mostly consecutive.

    Interval ``i`` is ``range(_starts[i], _stops[i])``. Intervals are in ascending order, and no two are adjacent.
    """

    def __init__(self) -> None:
        self._starts, self._stops = array("q"), array("q")

    def __contains__(self, number: int) -> bool:
        interval = bisect_right(self._starts, number) - 1
        return interval >= 0 and number < self._stops[interval]

    def add(self, number: int) -> bool:
        """Add a number. Return whether it is new."""
        starts, stops = self._starts, self._stops
        if stops and stops[-1] == number:  # nearly always
            stops[-1] += 1
            return True
        after = bisect_right(starts, number)
        if after and number < stops[after - 1]:
            return False
        extends_previous = after > 0 and stops[after - 1] == number
        extends_next = after < len(starts) and starts[after] == number + 1
        if extends_previous and extends_next:
            stops[after - 1] = stops[after]
            del starts[after], stops[after]
        elif extends_previous:
            stops[after - 1] += 1
        elif extends_next:
            starts[after] = number
        else:
            starts.insert(after, number)
            stops.insert(after, number + 1)
        return True

    def keys(self) -> "array[int]":
        """Return the numbers in ascending order."""
        numbers = array("q")
        for start, stop in zip(self._starts, self._stops, strict=True):
            numbers.extend(range(start, stop))
        return numbers


class SpillingSet:
    """A set of integers below 2**64 in a few megabytes of memory, whatever its size.

    The newest keys are in an open-addressing hash table, the older ones sorted in an unnamed temporary file. Keys must
    be hashes or consecutive numbers: the table hashes by the low bits. Source: Knuth, TAOCP 3, 6.4, algorithm L.
    """

    def __init__(self) -> None:
        self._older: _SortedFile | None = None
        self._reset_table()

    def __contains__(self, key: int) -> bool:
        key = key or 1
        return self._slots[self._slot(key)] != 0 or (self._older is not None and key in self._older)

    def add(self, key: int) -> bool:
        """Add a key. Return whether it is new. Zero counts as 1."""
        key = key or 1
        slots, mask = self._slots, self._mask
        slot = key & mask
        while stored := slots[slot]:  # `_slot`, without the call
            if stored == key:
                return False
            slot = (slot + 1) & mask
        if self._older is not None and key in self._older:
            return False
        slots[slot] = key
        self._count += 1
        if self._count == MEMORY_KEYS:
            self._spill()
        return True

    def keys(self) -> "array[int]":
        """Return the keys, in no order."""
        keys = array("Q", filter(None, self._slots))
        for chunk in self._older.chunks() if self._older else ():
            keys.frombytes(chunk.tobytes())
        return keys

    def _reset_table(self) -> None:
        self._slots = array("Q", bytes(8 * 2 * MEMORY_KEYS))
        self._mask = len(self._slots) - 1
        self._count = 0

    def _slot(self, key: int) -> int:
        """Return the slot that holds the key, or the free one where it belongs."""
        slots, mask = self._slots, self._mask
        slot = key & mask
        while (stored := slots[slot]) and stored != key:
            slot = (slot + 1) & mask
        return slot

    def _spill(self) -> None:
        newest = np.frombuffer(self._slots, np.uint64)
        self._older = _SortedFile(np.sort(newest[newest != 0]), self._older)
        self._reset_table()


class _SortedFile:
    """Keys in ascending order in a temporary file, merged with those of an older file."""

    def __init__(self, keys: NDArray[np.uint64], older: "_SortedFile | None") -> None:
        file = tempfile.TemporaryFile(prefix="labelloop-keys-")  # noqa: SIM115 - closed with this object
        weakref.finalize(self, file.close)
        self._file, self._handle = file, file.fileno()
        self._first = array("Q")
        rest: NDArray[np.uint64] = np.empty(0, np.uint64)  # what does not fill a page waits for the next chunk
        for chunk in older.chunks() if older else ():
            smaller = int(np.searchsorted(keys, chunk[-1]))
            rest = self._write_pages(np.concatenate((rest, np.sort(np.concatenate((chunk, keys[:smaller]))))))
            keys = keys[smaller:]
        rest = np.concatenate((rest, keys))
        self._first.extend(rest[::_PAGE_KEYS].tolist())
        file.write(rest.tobytes())
        file.flush()

    def __contains__(self, key: int) -> bool:
        page = bisect_right(self._first, key) - 1
        if page < 0:
            return False
        data = os.pread(self._handle, 8 * _PAGE_KEYS, 8 * _PAGE_KEYS * page)
        wanted = key.to_bytes(8, sys.byteorder)
        offset = data.find(wanted)
        while offset % 8 and offset > 0:  # a match across two keys
            offset = data.find(wanted, offset + 1)
        return offset >= 0

    def chunks(self) -> Iterator[NDArray[np.uint64]]:
        """Yield the keys in order, up to `MERGE_KEYS` at a time."""
        offset = 0
        while data := os.pread(self._handle, 8 * MERGE_KEYS, offset):
            yield np.frombuffer(data, np.uint64)
            offset += len(data)

    def _write_pages(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Write the full pages. Return the keys left over."""
        full = len(keys) // _PAGE_KEYS * _PAGE_KEYS
        self._first.extend(keys[:full:_PAGE_KEYS].tolist())
        self._file.write(keys[:full].tobytes())
        return keys[full:]
