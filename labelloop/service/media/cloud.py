"""`CloudDownloader`: download images from Google's and Azure's object stores with this machine's credentials."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from typing import BinaryIO, cast

from cachetools import LRUCache

from labelloop.service.media.download import too_many_bytes
from labelloop.service.media.errors import MediaHostRefused, MediaHostSilent, MediaMissing, MediaUnreachable
from labelloop.service.settings import Settings
from labelloop.service.store import StoreError, StoreUnreachable, open_bucket
from labelloop.service.store.addresses import from_studio_url, split_bucket_url
from labelloop.service.store.azure_account import VARIABLES
from labelloop.service.store.bucket import Bucket
from labelloop.service.store.errors import ObjectNotFound, StoreSilent

# Buckets whose clients are kept: tasks name them.
MAX_BUCKETS = 16

# Scheme -> the environment variables that name this machine's credentials.
_VARIABLES = {"gs": ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"), "az": VARIABLES}

_OR_STUDIO = (
    " Or let Label Studio read it: LABELLOOP_LABEL_STUDIO_URL, LABELLOOP_LABEL_STUDIO_API_KEY and a storage of the"
    " project (Settings > Cloud Storage)."
)


def named_credentials(scheme: str) -> str:
    """A digest of the credentials that the environment names; empty if it names none."""
    values = " ".join(filter(None, map(os.environ.get, _VARIABLES[scheme])))
    return hashlib.sha256(values.encode()).hexdigest() if values else ""


class CloudDownloader:
    """Downloads objects; thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._buckets: LRUCache[str, Bucket] = LRUCache(MAX_BUCKETS)

    def fetch(self, url: str, into: BinaryIO) -> None:
        """Download `gs://bucket/key`, `az://container/key` or `azure-blob://container/key` into a file.

        Raises:
            MediaMissing: The object does not exist, access is denied, or the provider's client is not installed.
            MediaUnreachable: The server does not answer in time or fails.
            MediaTooLarge: More bytes than `media_max_bytes`.
            MediaHostRefused: The address is invalid.
        """
        with self._opened(url) as (bucket, key):
            bucket.download(key, cast("BinaryIO", _Limited(into, url, self._settings)))

    def start(self, url: str, size: int) -> bytes:
        """The first ``size`` bytes of an object, or all of a shorter one. Raises as `fetch`."""
        with self._opened(url) as (bucket, key):
            return bucket.start(key, size)

    @contextmanager
    def _opened(self, url: str) -> Iterator[tuple[Bucket, str]]:
        """The bucket and the key of an address; errors of the store become those of media."""
        address, key = split_bucket_url(from_studio_url(url))
        if not key or address.endswith("/"):
            raise MediaHostRefused(url, "no address of an object in a bucket")
        try:
            yield self._bucket(address), key
        except StoreError as error:
            kind = (
                MediaHostSilent
                if isinstance(error, StoreSilent)
                else MediaMissing
                if isinstance(error, StoreUnreachable | ObjectNotFound)
                else MediaUnreachable
            )
            ways = _OR_STUDIO if kind is MediaMissing and isinstance(error, StoreUnreachable) else ""
            raise kind(url, error.reason, fix=f"{error.fix}{ways}") from None

    def _bucket(self, address: str) -> Bucket:
        with self._lock:
            if (bucket := self._buckets.get(address)) is None:
                others = (other.sibling(address) for other in self._buckets.values())  # Google's share one client
                bucket = next(filter(None, others), None)
                bucket = bucket or open_bucket(address, timeout_s=self._settings.media_timeout_s)
                self._buckets[address] = bucket
            return bucket


class _Limited(RawIOBase):
    """A file that takes a limited number of bytes, for a limited time."""

    def __init__(self, file: BinaryIO, url: str, settings: Settings) -> None:
        self._file, self._url, self._limit = file, url, settings.media_max_bytes
        self._deadline = time.monotonic() + settings.media_timeout_s

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self._file.tell() + len(data) > self._limit:
            raise too_many_bytes(self._url, self._limit)
        if time.monotonic() > self._deadline:
            raise MediaHostSilent(self._url, "timed out")
        return self._file.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
