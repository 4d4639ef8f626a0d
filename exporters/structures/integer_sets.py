"""Compact sets of integers: `Runs` for consecutive numbers, `KeySet` for 64-bit hashes, most of them on the disk."""

import os
import sys
import tempfile
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_NEWEST = 1 << 15
"""Numbers that are kept in memory before they join the others on the disk: a power of two."""
_PAGE = 64
"""Numbers that are read from the disk at a time: of each page the first is kept in memory."""
_MERGED = 1 << 16
"""Numbers that are merged at a time."""


class Runs:
    """Numbers from 0, as runs in ascending order: ``_first[i]`` to before ``_after[i]``; no two runs touch."""

    def __init__(self) -> None:
        self._first, self._after = array("q"), array("q")

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._first, number) - 1
        return place >= 0 and number < self._after[place]

    def add(self, number: int) -> bool:
        """Add a number; whether it is new."""
        first, after = self._first, self._after
        if after and after[-1] == number:  # nearly always
            after[-1] += 1
            return True
        place = bisect_right(first, number)
        if place and number < after[place - 1]:
            return False
        follows = place > 0 and after[place - 1] == number
        leads = place < len(first) and first[place] == number + 1
        if follows and leads:
            after[place - 1] = after[place]
            del first[place], after[place]
        elif follows:
            after[place - 1] += 1
        elif leads:
            first[place] = number
        else:
            first.insert(place, number)
            after.insert(place, number + 1)
        return True

    def keys(self) -> "array[int]":
        """The numbers, in ascending order."""
        found = array("q")
        for first, after in zip(self._first, self._after, strict=True):
            found.extend(range(first, after))
        return found


class KeySet:
    """The newest in a table with open addressing, the older ones sorted in a nameless file.

    The numbers are hashes, or follow each other. Source of the table: Knuth, TAOCP 3, 6.4, algorithm L.
    """

    def __init__(self) -> None:
        self._older: _Sorted | None = None
        self._begin()

    def __contains__(self, key: int) -> bool:
        key = key or 1
        return self._slots[self._place(key)] != 0 or (self._older is not None and key in self._older)

    def add(self, key: int) -> bool:
        """Add a number; whether it is new. Zero is taken for one."""
        key = key or 1
        slots, mask = self._slots, self._mask
        place = key & mask
        while found := slots[place]:  # `_place`, without the call
            if found == key:
                return False
            place = (place + 1) & mask
        if self._older is not None and key in self._older:
            return False
        slots[place] = key
        self._count += 1
        if self._count == _NEWEST:
            self._put_away()
        return True

    def keys(self) -> "array[int]":
        """The numbers, in no order."""
        found = array("Q", filter(None, self._slots))
        for page in self._older.chunks() if self._older else ():
            found.frombytes(page.tobytes())
        return found

    def _begin(self) -> None:
        self._slots = array("Q", bytes(8 * 2 * _NEWEST))
        self._mask = len(self._slots) - 1
        self._count = 0

    def _place(self, key: int) -> int:
        """Where a number is, or belongs."""
        slots, mask = self._slots, self._mask
        place = key & mask
        while (found := slots[place]) and found != key:
            place = (place + 1) & mask
        return place

    def _put_away(self) -> None:
        newest = np.frombuffer(self._slots, np.uint64)
        self._older = _Sorted(np.sort(newest[newest != 0]), self._older)
        self._begin()


class _Sorted:
    """Numbers on the disk, in ascending order; those of an older file are merged in."""

    def __init__(self, keys: NDArray[np.uint64], older: "_Sorted | None") -> None:
        file = tempfile.TemporaryFile(prefix="labelloop-keys-")  # noqa: SIM115 - it ends with this object
        weakref.finalize(self, file.close)
        self._file, self._handle = file, file.fileno()
        self._first = array("Q")
        rest: NDArray[np.uint64] = np.empty(0, np.uint64)  # what does not fill a page waits for the next chunk
        for chunk in older.chunks() if older else ():
            smaller = int(np.searchsorted(keys, chunk[-1]))
            rest = self._write(np.concatenate((rest, np.sort(np.concatenate((chunk, keys[:smaller]))))))
            keys = keys[smaller:]
        rest = np.concatenate((rest, keys))
        self._first.extend(rest[::_PAGE].tolist())
        file.write(rest.tobytes())
        file.flush()

    def __contains__(self, key: int) -> bool:
        page = bisect_right(self._first, key) - 1
        if page < 0:
            return False
        text, wanted = os.pread(self._handle, 8 * _PAGE, 8 * _PAGE * page), key.to_bytes(8, sys.byteorder)
        place = text.find(wanted)
        while place % 8 and place > 0:  # the end of one number and the beginning of the next
            place = text.find(wanted, place + 1)
        return place >= 0

    def chunks(self) -> Iterator[NDArray[np.uint64]]:
        """The numbers, some at a time."""
        place = 0
        while data := os.pread(self._handle, 8 * _MERGED, place):
            yield np.frombuffer(data, np.uint64)
            place += len(data)

    def _write(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Write whole pages; gives what is left."""
        whole = len(keys) // _PAGE * _PAGE
        self._first.extend(keys[:whole:_PAGE].tolist())
        self._file.write(keys[:whole].tobytes())
        return keys[whole:]
