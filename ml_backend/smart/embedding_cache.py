"""Owns `Looks`: what a segmenter computed of the photos that annotators are at work on, a bounded number a worker."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass
class _Slot(Generic[Value]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    value: Value | None = None


class SingleFlightLRU(Generic[Value]):
    """The last values by key. Each is made once, however many threads ask for it at the same time."""

    def __init__(self, most: int) -> None:
        """Keeps nothing yet.

        Args:
            most: How many values at most; the one used longest ago goes first.
        """
        self._most = most
        self._slots: OrderedDict[str, _Slot[Value]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], Value]) -> Value:
        """The value of a key, made where it is not there. Whatever `make` raises is raised, and kept for nobody."""
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > self._most:
                self._slots.popitem(last=False)
        with slot.lock:
            if slot.value is None:
                try:
                    slot.value = make()
                except BaseException:
                    with self._lock:
                        if self._slots.get(key) is slot:
                            del self._slots[key]
                    raise
            return slot.value
