"""What is in one split only: addresses of images, or bytes of photos, each with the split of the first that has it."""

from array import array

from exporters.structures.integer_sets import KeySet
from labelloop.labeling.splits import SPLITS

_NUMBERS = {name: number for number, name in enumerate(SPLITS)}
_NOWHERE = len(SPLITS)


class SplitKeys:
    """Keys below 2**64 whose two lowest bits say the split, so that they are kept and handed on as plain numbers."""

    def __init__(self) -> None:
        self._keys = KeySet()

    def __contains__(self, key: int) -> bool:
        return any((key & ~3 | number) in self._keys for number in range(_NOWHERE + 1))

    def split(self, key: int) -> str:
        """The split of the first that has the key; empty where none of a split to train or test on has it."""
        return next((name for name, number in _NUMBERS.items() if (key & ~3 | number) in self._keys), "")

    def add(self, key: int) -> None:
        """Add a key that was `marked`."""
        self._keys.add(key)

    def keys(self) -> "array[int]":
        """The marked keys, in no order."""
        return self._keys.keys()


def marked(key: int, split: str) -> int:
    """A key that says a split; any but those of `SPLITS` is none to train or test on."""
    return key & ~3 | _NUMBERS.get(split, _NOWHERE)
