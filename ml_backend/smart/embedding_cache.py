"""Thread-safe LRU cache that computes each value once, such as the image embeddings of smart tools."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")


@dataclass
class _Slot(Generic[Value]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    value: Value | None = None


class SingleFlightLRU(Generic[Value]):
    """LRU cache of values by key; concurrent requests for a key compute its value once."""

    def __init__(self, maxsize: int) -> None:
        """Create an empty cache.

        Args:
            maxsize: Maximum number of values.
        """
        self._slots: LRUCache[str, _Slot[Value]] = LRUCache(maxsize)
        self._lock = threading.Lock()

    def get(self, key: str, compute: Callable[[], Value]) -> Value:
        """Return the value of a key; compute and store it on a miss.

        Raises:
            Exception: Whatever `compute` raises; the failure is not stored.
        """
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
        with slot.lock:
            if slot.value is None:
                try:
                    slot.value = compute()
                except BaseException:
                    with self._lock:
                        if self._slots.get(key) is slot:
                            del self._slots[key]
                    raise
            return slot.value
