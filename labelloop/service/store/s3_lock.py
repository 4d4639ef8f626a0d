"""A lock made of one object that is created only: what a swap takes where the server has no compare-and-swap.

Safe among writers that all use it, on a server whose create-only writes hold. A holder that dies leaves its lock
behind; after `LEASE_S`, by the server's own clock, the next writer removes it. Two writers that remove the same dead
lock at the same moment are told apart by looking at the lock once more right before the write; between that look and
the write, some milliseconds, a swap may in theory be lost. A server with If-Match has no such gap.
"""

import hashlib
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime

from labelloop.service.store.client import Place
from labelloop.service.store.errors import AlreadyThere, NotThere, StoreError
from labelloop.service.store.keys import OWN
from labelloop.service.store.s3_errors import plainly

LEASE_S = 30.0
WAIT_S = 45.0


class ObjectLock:
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
        try:
            yield
        finally:
            with suppress(StoreError):  # the lease ends it otherwise
                if self.mine():
                    self._remove()

    def mine(self) -> bool:
        """Whether the lock is still ours: to be asked right before the write."""
        return self._seen()[0] == self._owner

    def _taken(self) -> bool:
        try:
            self._create(self._lock_key, self._owner)
        except AlreadyThere:
            _, age = self._seen()
            if age > LEASE_S:
                self._remove()
            return False
        return True

    def _seen(self) -> tuple[bytes, float]:
        """Who holds it, and for how many seconds by the server's clock; (b"", 0) when nobody does."""
        try:
            with plainly(self._url, self._key):
                answer = self._client.get_object(**self._place.of(self._lock_key))
                owner = answer["Body"].read()
        except NotThere:
            return b"", 0.0
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return owner, (now - answer["LastModified"]).total_seconds()

    def _remove(self) -> None:
        with plainly(self._url, self._key):
            self._client.delete_object(**self._place.of(self._lock_key))
