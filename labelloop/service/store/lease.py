"""`Lease`: what every lock object has in common: waiting for it, heartbeats while it is held, and giving it back."""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from labelloop.service.store.errors import StoreError, lock_timeout

HEARTBEATS_PER_LEASE = 4


class Lease(ABC):
    """The lock of one key.

    Args:
        url: The address of the store, for messages.
        key: The locked key.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = url, key

    @contextmanager
    def acquire(self, wait_s: float) -> Iterator[None]:
        """Hold the lock; wait up to `wait_s` seconds for it.

        Raises:
            StoreError: Others held it all the time.
        """
        deadline = time.monotonic() + wait_s
        while not self.try_acquire():
            if time.monotonic() > deadline:
                raise lock_timeout(self._url, self._key, wait_s)
            time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - jitter, not security
        stopped = Event()
        Thread(target=self._heartbeat, args=(stopped,), name="lock", daemon=True).start()
        try:
            yield
        finally:
            stopped.set()
            with suppress(StoreError):  # otherwise the lease expires
                self._release()

    @abstractmethod
    def is_held(self) -> bool:
        """Whether this object still holds the lock; call it right before the write."""

    @abstractmethod
    def try_acquire(self) -> bool:
        """Try once to take the lock, also from a dead holder."""

    @abstractmethod
    def _heartbeat(self, stopped: Event) -> None:
        """Show that the holder lives, until `stopped`."""

    @abstractmethod
    def _release(self) -> None:
        """Free the lock, if it is still ours."""
