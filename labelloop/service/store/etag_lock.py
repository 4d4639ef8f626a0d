"""A lease in a lock object, on a server with compare-and-swap: taking, renewing and releasing are each one swap.

The object has the holder's id and a number that it raises with every heartbeat; empty: free. A waiter that sees the
same etag for `LEASE_S` seconds of its own monotonic clock replaces the object of a dead holder. Of several waiters, and
a holder that only was slow, exactly one swap succeeds. Clocks of different machines are never compared.
"""

import hashlib
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread

from labelloop.service.store.bucket import ABSENT, Bucket
from labelloop.service.store.errors import ObjectChanged, ObjectNotFound, StoreError, lock_timeout
from labelloop.service.store.keys import INTERNAL_PREFIX

LEASE_S = 10.0
_HEARTBEATS_PER_LEASE = 4
_FREE = b""


class EtagLock:
    """The lock of one name.

    Args:
        bucket: The bucket.
        prefix: Prefix of the store's keys.
        url: The address of the store, for messages.
        key: The name.
    """

    def __init__(self, bucket: Bucket, prefix: str, url: str, key: str) -> None:
        self._bucket, self._url, self._key = bucket, url, key
        self._name = f"{prefix}{INTERNAL_PREFIX}locks/{hashlib.sha256(key.encode()).hexdigest()}"
        self._owner = uuid.uuid4().hex
        self._beats = 0
        self._etag: str | None = None  # of our own last write; None: not held
        self._writing = Lock()
        self._observed, self._since = "", 0.0

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
                self._renew(_FREE)

    def is_held(self) -> bool:
        """Whether this object still holds the lock; call it right before the write."""
        with self._writing:
            return self._etag is not None and self._bucket.read(self._name)[1] == self._etag

    def try_acquire(self) -> bool:
        """Try once to take the lock, also from a dead holder."""
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
        while not stopped.wait(LEASE_S / _HEARTBEATS_PER_LEASE):
            with suppress(StoreError):
                if not self._renew(self._content()):
                    return

    def _content(self) -> bytes:
        self._beats += 1
        return f"{self._owner} {self._beats}".encode()

    def _write(self, content: bytes, etag: str) -> str:
        return self._bucket.write(self._name, content, content_type="text/plain", match=etag)
