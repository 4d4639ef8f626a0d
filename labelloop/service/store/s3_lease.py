"""A lease in a lock object, used by `swap` on servers without compare-and-swap.

Safe among writers that all use it, on a server with create-only writes. The holder writes heartbeats to a separate
object. A waiter that sees no new heartbeat for `LEASE_S` seconds of its own monotonic clock removes the lock of a dead
holder. Clocks of different machines are never compared, and changes of the wall clock do not matter. Two waiters may
remove the same dead lock at the same time, so the holder checks its lock again right before the write; in the few
milliseconds between that check and the write a swap could be lost. A server with If-Match has no such gap.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event

from labelloop.service.store.errors import ObjectExists, ObjectNotFound, StoreError
from labelloop.service.store.keys import INTERNAL_PREFIX
from labelloop.service.store.lease import HEARTBEATS_PER_LEASE, Lease
from labelloop.service.store.s3_client import S3Location
from labelloop.service.store.s3_errors import translate_errors

LEASE_S = 10.0
WAIT_S = 45.0


class ObjectLease(Lease):
    """The lock of one key.

    Args:
        location: The bucket and prefix.
        key: The locked key.
        create: Creates the lock object, like `Store.create`.
    """

    def __init__(self, location: S3Location, key: str, create: Callable[[str, bytes], str]) -> None:
        super().__init__(location.url, key)
        self._location = location
        self._client = location.client
        self._lock_key = f"{INTERNAL_PREFIX}locks/{hashlib.sha256(key.encode()).hexdigest()}"
        self._create = create
        self._owner = uuid.uuid4().hex.encode()
        self._observed_owner, self._last_heartbeat, self._last_change = b"", b"", 0.0

    @contextmanager
    def acquire(self, wait_s: float | None = None) -> Iterator[None]:
        """See `Lease.acquire`; `WAIT_S` seconds if not given."""
        with super().acquire(WAIT_S if wait_s is None else wait_s):
            yield

    def is_held(self) -> bool:
        """See `Lease.is_held`."""
        return self._read(self._lock_key) == self._owner

    def try_acquire(self) -> bool:
        """See `Lease.try_acquire`. The lock of a dead holder is removed, for the next attempt."""
        try:
            self._create(self._lock_key, self._owner)
        except ObjectExists:
            if self._is_dead():
                with suppress(StoreError):
                    self._remove(self._heartbeat_key(self._observed_owner))
                self._remove(self._lock_key)
            return False
        return True

    def _release(self) -> None:
        if self.is_held():
            self._remove(self._lock_key)

    def _is_dead(self) -> bool:
        """Whether the holder wrote no heartbeat for `LEASE_S` seconds."""
        owner, now = self._read(self._lock_key), time.monotonic()
        if owner != self._observed_owner:
            self._observed_owner, self._last_heartbeat, self._last_change = owner, b"", now
        if not owner or now - self._last_change <= LEASE_S:
            return False
        heartbeat = self._read(self._heartbeat_key(owner))
        if heartbeat != self._last_heartbeat:
            self._last_heartbeat, self._last_change = heartbeat, now
            return False
        return True

    def _heartbeat(self, stopped: Event) -> None:
        """Write heartbeats until `stopped`; most swaps end before the first."""
        beats = 0
        while not stopped.wait(LEASE_S / HEARTBEATS_PER_LEASE):
            beats += 1
            key = self._heartbeat_key(self._owner)
            with suppress(StoreError), translate_errors(self._url, self._key):
                self._client.put_object(**self._location.object_args(key), Body=b"%d" % beats)
        if beats:
            with suppress(StoreError):
                self._remove(self._heartbeat_key(self._owner))

    def _heartbeat_key(self, owner: bytes) -> str:
        return f"{self._lock_key}-{hashlib.sha256(owner).hexdigest()[:32]}"

    def _read(self, key: str) -> bytes:
        """The content of an object; empty if it does not exist."""
        try:
            with translate_errors(self._url, self._key):
                return bytes(self._client.get_object(**self._location.object_args(key))["Body"].read())
        except ObjectNotFound:
            return b""

    def _remove(self, key: str) -> None:
        with translate_errors(self._url, self._key):
            self._client.delete_object(**self._location.object_args(key))
