"""`CloudStore`: objects in a bucket whose server checks conditional writes by itself, so that no write waits."""

import mimetypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from labelloop.service.scratch import scratch_folder
from labelloop.service.store.addresses import from_studio_url, split_bucket_url
from labelloop.service.store.base import Capabilities, Leftovers, ObjectInfo, Progress
from labelloop.service.store.bucket import ABSENT, Bucket
from labelloop.service.store.errors import ObjectChanged, ObjectExists, StoreError
from labelloop.service.store.etag_lock import EtagLock
from labelloop.service.store.keys import INTERNAL_PREFIX, validate_key
from labelloop.service.store.parallel import put_concurrently
from labelloop.service.store.probe import probe

_UPLOAD_CONCURRENCY = 3


class CloudStore:
    """A bucket or a prefix of it.

    Args:
        bucket: The bucket.
        prefix: Prefix of every key; empty, or ending with a slash.
    """

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._url = f"{bucket.url}/{prefix}".rstrip("/")

    @property
    def url(self) -> str:
        """`gs://bucket/prefix` or `az://container/prefix`."""
        return self._url

    @property
    def upload_concurrency(self) -> int:
        """See `Store.upload_concurrency`."""
        return _UPLOAD_CONCURRENCY

    @property
    def write_settle_s(self) -> float:
        """See `Store.write_settle_s`. The server decides atomically."""
        return 0.0

    def put(self, key: str, data: bytes | Path, *, content_type: str | None = None) -> str:
        """See `Store.put`."""
        return self._write(key, data, content_type=content_type)

    def create(self, key: str, data: bytes, *, exclusive_until: float = 0.0) -> str:
        """See `Store.create`."""
        del exclusive_until
        try:
            return self._write(key, data, match=ABSENT)
        except ObjectChanged:
            raise ObjectExists(self._url, key) from None

    def swap(self, key: str, data: bytes, *, etag: str | None, exclusive_until: float = 0.0) -> str:
        """See `Store.swap`."""
        del exclusive_until
        return self._write(key, data, match=ABSENT if etag is None else etag)

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return self.read(key)[0]

    def start(self, key: str, size: int) -> bytes:
        """See `Store.start`."""
        return self._bucket.start(self._name(key), size)

    def read(self, key: str) -> tuple[bytes, str]:
        """See `Store.read`."""
        return self._bucket.read(self._name(key))

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self._bucket.head(self._name(key)) is not None

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Store.list`."""
        for entry in self.entries(prefix):
            yield entry.key

    def entries(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store.entries`."""
        for entry in self._bucket.list(self._prefix + prefix):
            key = entry.key.removeprefix(self._prefix)
            if key and not key.startswith(INTERNAL_PREFIX) and not key.endswith("/"):
                yield ObjectInfo(key, entry.size, entry.modified, entry.tag)

    def download(self, key: str, to: Path) -> None:
        """See `Store.download`."""
        part = to.with_name(f"{to.name}.part")
        try:
            with part.open("wb") as file:
                self._bucket.download(self._name(key), file)
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)

    def copy_from(self, url: str, name: Callable[[ObjectInfo], str]) -> ObjectInfo | None:
        """See `Store.copy_from`. The copy is of the state that was passed to `name`, or it is not made."""
        bucket, key = split_bucket_url(from_studio_url(url))
        other = self._bucket.sibling(bucket)
        if other is None or not key:
            return None
        try:
            source = other.head(key)
            to = name(source) if source is not None else ""
            if source is None or not to:
                return None
            copied = self._bucket.copy(key, self._name(to), bucket=bucket, state=source)
        except StoreError:
            return None
        return ObjectInfo(to, copied.size, copied.modified, copied.tag)

    def copy(self, key: str, to: str) -> None:
        """See `Store.copy`."""
        self._bucket.copy(self._name(key), self._name(to))

    @contextmanager
    def lock(self, key: str, *, wait_s: float) -> Iterator[Callable[[], bool]]:
        """See `Store.lock`. A lease in an object: see `etag_lock`."""
        lock = EtagLock(self._bucket, self._prefix, self._url, key)
        with lock.acquire(wait_s):
            yield lock.is_held

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        self._bucket.delete(self._name(key))

    def put_many(self, items: Iterable[tuple[str, bytes | Path]], progress: Progress | None = None) -> int:
        """See `Store.put_many`."""
        return put_concurrently(self.put, items, progress)

    def leftovers(self, *, before: float, remove: bool = False) -> Leftovers:
        """See `Store.leftovers`. None: both providers forget an incomplete upload after a week, and do not list it."""
        del before, remove
        return Leftovers(0, 0)

    def scratch(self) -> AbstractContextManager[Path]:
        """See `Store.scratch`."""
        return scratch_folder()

    def self_test(self) -> Capabilities:
        """See `Store.self_test`."""
        return probe(self)

    def _write(self, key: str, data: bytes | Path, *, content_type: str | None = None, match: str | None = None) -> str:
        guessed = content_type or mimetypes.guess_type(key)[0] or "application/octet-stream"
        return self._bucket.write(self._name(key), data, content_type=guessed, match=match)

    def _name(self, key: str) -> str:
        return self._prefix + validate_key(self._url, key)
