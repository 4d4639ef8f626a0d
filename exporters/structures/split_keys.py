"""Map 64-bit keys to the split that first used them, for image addresses and image contents."""

from array import array

from exporters.structures.integer_sets import SpillingSet
from labelloop.labeling.splits import SPLITS

_SPLIT_CODES = {name: number for number, name in enumerate(SPLITS)}
_OTHER_SPLIT = len(SPLITS)


class SplitKeys:
    """Keys below 2**64 whose two lowest bits encode the split, so that a key and its split are one integer."""

    def __init__(self) -> None:
        self._keys = SpillingSet()

    def __contains__(self, key: int) -> bool:
        return any((key & ~3 | code) in self._keys for code in range(_OTHER_SPLIT + 1))

    def split(self, key: int) -> str:
        """Return the split stored with the key; empty if the key is new or its split is not one of `SPLITS`."""
        return next((name for name, code in _SPLIT_CODES.items() if (key & ~3 | code) in self._keys), "")

    def add(self, key: int) -> None:
        """Add a key returned by `with_split`."""
        self._keys.add(key)

    def keys(self) -> "array[int]":
        """Return the keys with their split bits, in no order."""
        return self._keys.keys()


def with_split(key: int, split: str) -> int:
    """Encode a split in the two lowest bits of a key; all splits outside `SPLITS` share one code."""
    return key & ~3 | _SPLIT_CODES.get(split, _OTHER_SPLIT)
