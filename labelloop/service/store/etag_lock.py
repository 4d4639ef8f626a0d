"""A lease in a lock object, on a server with compare-and-swap: taking, renewing and releasing are each one swap.

The object has the holder's id and a number that it raises with every heartbeat; empty: free. A waiter that sees the
same etag for `LEASE_S` seconds of its own monotonic clock replaces the object of a dead holder. Of several waiters, and
a holder that only was slow, exactly one swap succeeds. Clocks of different machines are never compared.
"""

import hashlib
import time
import uuid
from contextlib import suppress
from threading import Event, Lock

from labelloop.service.store.bucket import ABSENT, Bucket
from labelloop.service.store.errors import ObjectChanged, ObjectNotFound, StoreError
from labelloop.service.store.keys import INTERNAL_PREFIX
from labelloop.service.store.lease import HEARTBEATS_PER_LEASE, Lease

LEASE_S = 10.0
_FREE = b""


class EtagLock(Lease):
    """The lock of one name.

    Args:
        bucket: The bucket.
        prefix: Prefix of the store's keys.
        url: The address of the store, for messages.
        key: The name.
    """

    def __init__(self, bucket: Bucket, prefix: str, url: str, key: str) -> None:
        super().__init__(url, key)
        self._bucket = bucket
        self._name = f"{prefix}{INTERNAL_PREFIX}locks/{hashlib.sha256(key.encode()).hexdigest()}"
        self._owner = uuid.uuid4().hex
        self._beats = 0
        self._etag: str | None = None  # of our own last write; None: not held
        self._writing = Lock()
        self._observed, self._since = "", 0.0

    def is_held(self) -> bool:
        """See `Lease.is_held`."""
        with self._writing:
            return self._etag is not None and self._bucket.read(self._name)[1] == self._etag

    def try_acquire(self) -> bool:
        """See `Lease.try_acquire`."""
        try:
            content, etag = self._bucket.read(self._name)
        except ObjectNotFound:
            content, etag = _FREE, ABSENT
        if etag != self._observed:
            self._observed, self._since = etag, time.monotonic()
        if content != _FREE and time.monotonic() - self._since <= LEASE_S:
            return False
        try:
            self._etag = self._write(self._content(), etag)
        except ObjectChanged:
            return False
        return True

    def _release(self) -> None:
        self._renew(_FREE)

    def _renew(self, content: bytes) -> bool:
        """Replace our own object, or free it; False if another holder took it over."""
        with self._writing:
            if self._etag is None:
                return False
            etag, self._etag = self._etag, None
            try:
                written = self._write(content, etag)
            except ObjectChanged:
                return False
            except StoreError:
                self._etag = etag
                raise
            self._etag = None if content == _FREE else written
            return True

    def _heartbeat(self, stopped: Event) -> None:
        while not stopped.wait(LEASE_S / HEARTBEATS_PER_LEASE):
            with suppress(StoreError):
                if not self._renew(self._content()):
                    return

    def _content(self) -> bytes:
        self._beats += 1
        return f"{self._owner} {self._beats}".encode()

    def _write(self, content: bytes, etag: str) -> str:
        return self._bucket.write(self._name, content, content_type="text/plain", match=etag)
