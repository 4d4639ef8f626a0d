"""A lock made of one object that is created only: what a swap takes where the server has no compare-and-swap.

Safe among writers that all use it, on a server whose create-only writes hold. A holder that needs long gives signs of
life, in an object of its own that nobody else writes. One that dies leaves its lock behind: who waits has seen no sign
of it for `LEASE_S`, by the own steady clock, and removes it. No two machines' clocks are compared, and a clock that is
set does not matter. Two writers that remove the same dead lock at the same moment are told apart by looking at the lock
once more right before the write; between that look and the write, some milliseconds, a swap may in theory be lost. A
server with If-Match has no such gap.
"""

import hashlib
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from labelloop.service.store.errors import AlreadyThere, NotThere, StoreError
from labelloop.service.store.keys import OWN
from labelloop.service.store.s3_client import Place
from labelloop.service.store.s3_errors import plainly

LEASE_S = 10.0
WAIT_S = 45.0
_SIGNS = 4
"""Signs of life in a lease."""


class ObjectLease:
    """The lock of one key.

    Args:
        place: The bucket.
        key: What is locked.
        create: Creates the lock object, as `Store.create` does.
    """

    def __init__(self, place: Place, key: str, create: Callable[[str, bytes], str]) -> None:
        self._place = place
        self._client = place.client
        self._url = place.url
        self._key = key
        self._lock_key = f"{OWN}locks/{hashlib.sha256(key.encode()).hexdigest()}"
        self._create = create
        self._owner = uuid.uuid4().hex.encode()
        self._watched, self._sign, self._since = b"", b"", 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock, waiting at most `WAIT_S` for it.

        Raises:
            StoreError: Others held it all the time.
        """
        end = time.monotonic() + WAIT_S
        while not self._taken():
            if time.monotonic() > end:
                raise StoreError(
                    self._url, self._key, f"others have been writing it for {WAIT_S:.0f} s", fix="Try again later."
                )
            time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - spreads waiting writers, protects nothing
        ended = Event()
        Thread(target=self._heartbeat, args=(ended,), name="lock", daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            with suppress(StoreError):  # the lease ends it otherwise
                if self.mine():
                    self._remove(self._lock_key)

    def mine(self) -> bool:
        """Whether the lock is still ours: to be asked right before the write."""
        return self._read(self._lock_key) == self._owner

    def _taken(self) -> bool:
        try:
            self._create(self._lock_key, self._owner)
        except AlreadyThere:
            if self._is_dead():
                with suppress(StoreError):
                    self._remove(self._sign_key(self._watched))
                self._remove(self._lock_key)
            return False
        return True

    def _is_dead(self) -> bool:
        """Whether whoever holds it gave no sign of life for `LEASE_S`."""
        owner, now = self._read(self._lock_key), time.monotonic()
        if owner != self._watched:
            self._watched, self._sign, self._since = owner, b"", now
        if not owner or now - self._since <= LEASE_S:
            return False
        sign = self._read(self._sign_key(owner))
        if sign != self._sign:
            self._sign, self._since = sign, now
            return False
        return True

    def _heartbeat(self, ended: Event) -> None:
        """Nearly always the swap is over before the first."""
        given = 0
        while not ended.wait(LEASE_S / _SIGNS):
            given += 1
            key = self._sign_key(self._owner)
            with suppress(StoreError), plainly(self._url, self._key):
                self._client.put_object(**self._place.of(key), Body=b"%d" % given)
        if given:
            with suppress(StoreError):
                self._remove(self._sign_key(self._owner))

    def _sign_key(self, owner: bytes) -> str:
        return f"{self._lock_key}-{hashlib.sha256(owner).hexdigest()[:32]}"

    def _read(self, key: str) -> bytes:
        """What the object says; empty where there is none."""
        try:
            with plainly(self._url, self._key):
                return bytes(self._client.get_object(**self._place.of(key))["Body"].read())
        except NotThere:
            return b""

    def _remove(self, key: str) -> None:
        with plainly(self._url, self._key):
            self._client.delete_object(**self._place.of(key))
