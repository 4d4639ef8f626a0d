"""A set of numbers below 2**64 in some sixteen bytes each: a hundred thousand images are known in megabytes."""

from array import array


class KeySet:
    """Open addressing with linear probing; the numbers are hashes already. Source: Knuth, TAOCP 3, 6.4, algorithm L."""

    def __init__(self) -> None:
        self._mask = (1 << 10) - 1
        self._slots = array("Q", bytes(8 << 10))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: int) -> bool:
        return self._slots[self._place(key or 1)] != 0

    def add(self, key: int) -> bool:
        """Add a number; whether it is new. Zero is taken for one."""
        key = key or 1
        slots, mask = self._slots, self._mask
        place = key & mask
        while found := slots[place]:  # `_place`, without the call
            if found == key:
                return False
            place = (place + 1) & mask
        slots[place] = key
        self._count += 1
        if 2 * self._count > self._mask:
            self._grow()
        return True

    def keys(self) -> "array[int]":
        """The numbers, in no order."""
        return array("Q", filter(None, self._slots))

    def _place(self, key: int) -> int:
        """Where a number is, or belongs."""
        slots, mask = self._slots, self._mask
        place = key & mask
        while (found := slots[place]) and found != key:
            place = (place + 1) & mask
        return place

    def _grow(self) -> None:
        before = self._slots
        self._mask = 2 * self._mask + 1
        self._slots = array("Q", bytes(8 * (self._mask + 1)))
        slots, mask = self._slots, self._mask
        for key in filter(None, before):
            place = key & mask
            while slots[place]:  # each is there once
                place = (place + 1) & mask
            slots[place] = key
