"""In-memory cache of what a head computes from one example, so that a run computes it for new images alone."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ExampleCache(Generic[Value]):
    """Values by key, the least recently used dropped beyond a size. Thread-safe."""

    def __init__(self, max_bytes: int, *, size_of: Callable[[Value], int]) -> None:
        """Start empty.

        Args:
            max_bytes: Limit for all values together.
            size_of: Size of a value in bytes.
        """
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str, compute: Callable[[], Value]) -> Value:
        """Return the value of a key, computed on a miss. Threads that miss at once both compute it.

        Args:
            key: Such as `HeadExample.key` with everything else that the value depends on.
            compute: Computes the value.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = compute()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._bytes += self._size_of(value)
                while self._bytes > self._max_bytes and len(self._values) > 1:
                    self._bytes -= self._size_of(self._values.popitem(last=False)[1])
            return self._values[key]
